"""What every codec, denoiser and diffusion head must do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip3o.diffusion import Codec, Denoiser, DiffusionHead, FlowMatching
from blip3o.diffusion.library import DiffusersDenoiser
from blip3o.structures import Conditioning
from tests.tiny import IMAGE_SIZE, generators, rebuilt, tiny_images


def condition(cond_dim: int, rows: int = 2, positions: int = 17, seed: int = 11) -> Conditioning:
    """A random condition without padding."""
    embeds = torch.randn(rows, positions, cond_dim, generator=torch.Generator().manual_seed(seed))
    return Conditioning(embeds)


class CodecContract:
    """Inherit, name the class `Test...` and give `codec()`."""

    def codec(self) -> Codec:
        """The same small codec at every call."""
        raise NotImplementedError

    def test_encode_gives_latents_of_the_size_it_says(self) -> None:
        codec = self.codec()
        latents = codec.encode(tiny_images(2))
        side = IMAGE_SIZE // codec.spatial_factor
        assert latents.shape == (2, codec.latent_channels, side, side)
        assert codec.encode(tiny_images(1)[..., : codec.spatial_factor]).shape[-1] == 1

    def test_decode_gives_images_within_range(self) -> None:
        codec = self.codec()
        images = codec.decode(10 * codec.encode(tiny_images(2)))
        assert images.shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)
        assert images.min() >= -1 and images.max() <= 1

    def test_encoding_draws_nothing(self) -> None:
        codec, images = self.codec(), tiny_images(2)
        assert torch.equal(codec.encode(images), codec.encode(images))

    def test_latents_are_shifted_then_scaled_and_decode_undoes_it(self) -> None:
        codec, images = self.codec(), tiny_images(2)
        codec.shift_factor.fill_(0.3)
        codec.scaling_factor.fill_(1.7)
        raw = codec.encode_raw(images)
        torch.testing.assert_close(codec.encode(images), (raw - 0.3) * 1.7)
        expected = codec.decode_raw(raw).clamp(-1, 1)
        torch.testing.assert_close(codec.decode(codec.encode(images)), expected, rtol=1e-4, atol=1e-5)

    def test_calibration_gives_zero_mean_and_unit_variance(self) -> None:
        codec, images = self.codec(), tiny_images(8)
        before = codec.encode(images)
        assert (before.mean().abs() - 0).abs() > 0.01 or (before.std() - 1).abs() > 0.01
        codec.calibrate(images)
        latents = codec.encode(images)
        assert latents.mean().abs() < 1e-3
        assert (latents.std() - 1).abs() < 1e-3

    def test_what_calibration_measured_is_saved(self) -> None:
        codec, again = self.codec(), self.codec()
        codec.calibrate(tiny_images(4))
        again.load_state_dict(codec.state_dict())
        assert torch.equal(again.encode(tiny_images(2)), codec.encode(tiny_images(2)))
        assert again.scaling_factor == codec.scaling_factor != self.codec().scaling_factor

    def test_images_of_another_shape_are_refused(self) -> None:
        codec, images = self.codec(), tiny_images(2)
        wrong = [images[0], images[:, :1]]
        if codec.spatial_factor > 1:
            wrong.append(images[..., :-1])
        for each in wrong:
            with pytest.raises(ValueError, match="images has shape"):
                codec.encode(each)

    def test_its_config_builds_it_again(self) -> None:
        codec = self.codec()
        again = rebuilt(codec)
        assert again.config() == codec.config()
        assert torch.equal(again.scaling_factor, codec.scaling_factor)
        assert torch.equal(again.shift_factor, codec.shift_factor)
        again.load_state_dict(codec.state_dict())
        assert torch.equal(again.encode(tiny_images(2)), codec.encode(tiny_images(2)))


class DenoiserContract:
    """Inherit, name the class `Test...` and give `denoiser()`, for 8x8 latents."""

    def denoiser(self) -> Denoiser:
        """The same small denoiser at every call, with no layer at zero."""
        raise NotImplementedError

    def inputs(self, denoiser: Denoiser) -> tuple[Tensor, Tensor, Conditioning]:
        shape = (2, denoiser.latent_channels, 8, 8)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(9))
        return latents, torch.tensor([0.2, 0.9]), condition(denoiser.cond_dim)

    def test_the_prediction_has_the_latents_shape(self) -> None:
        denoiser = self.denoiser()
        latents, sigma, cond = self.inputs(denoiser)
        assert denoiser(latents, sigma, cond).shape == latents.shape

    def test_latents_noise_level_and_condition_each_matter(self) -> None:
        denoiser = self.denoiser()
        latents, sigma, cond = self.inputs(denoiser)
        prediction = denoiser(latents, sigma, cond)
        other = condition(denoiser.cond_dim, seed=12)
        for changed in ((latents + 1, sigma, cond), (latents, sigma / 2, cond), (latents, sigma, other)):
            assert (denoiser(*changed) - prediction).abs().max() > 1e-3

    def test_a_row_does_not_depend_on_the_others(self) -> None:
        denoiser = self.denoiser()
        latents, sigma, cond = self.inputs(denoiser)
        whole = denoiser(latents, sigma, cond)
        alone = denoiser(latents[1:], sigma[1:], cond[1:])
        torch.testing.assert_close(whole[1:], alone, rtol=0, atol=1e-5)

    def test_masked_positions_of_the_condition_do_not_change_the_prediction(self) -> None:
        denoiser = self.denoiser()
        latents, sigma, cond = self.inputs(denoiser)
        expected = denoiser(latents, sigma, cond)
        junk = 10 * condition(denoiser.cond_dim, positions=3, seed=13).embeds
        embeds = torch.cat([junk, cond.embeds], dim=1)
        counted = torch.cat([torch.tensor([[False] * 3, [True] * 3]), cond.full_mask()], dim=1)
        actual = denoiser(latents, sigma, Conditioning(embeds, counted))
        torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=1e-5)
        assert (actual[1] - expected[1]).abs().max() > 1e-3, "the other row counts them"

    def test_masked_positions_get_no_gradient(self) -> None:
        denoiser = self.denoiser()
        latents, sigma, cond = self.inputs(denoiser)
        mask = cond.full_mask().clone()
        mask[0, -2:] = False
        embeds = cond.embeds.clone().requires_grad_()
        denoiser(latents, sigma, Conditioning(embeds, mask)).square().sum().backward()
        assert embeds.grad is not None
        assert torch.equal(embeds.grad.abs().sum(dim=2) > 0, mask)

    def test_the_loss_on_one_batch_falls_by_half(self) -> None:
        denoiser, objective = self.denoiser().train(), FlowMatching()
        latents, sigma, cond = self.inputs(denoiser)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
        optimizer = torch.optim.AdamW(denoiser.parameters(), lr=5e-3)
        losses = []
        for _ in range(40):
            prediction = denoiser(objective.add_noise(latents, noise, sigma), sigma, cond)
            loss = (prediction - objective.target(latents, noise)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 2

    def test_its_config_builds_it_again(self) -> None:
        denoiser = self.denoiser()
        again = rebuilt(denoiser)
        assert again.config() == denoiser.config()
        again.load_state_dict(denoiser.state_dict())
        inputs = self.inputs(denoiser)
        torch.testing.assert_close(again(*inputs), denoiser(*inputs), rtol=0, atol=1e-6)


def counting(method: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    """The method, noting every call of it."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return method(*args, **kwargs)

    return counted


class DiffusersDenoiserContract(DenoiserContract):
    """What a denoiser around one of diffusers' transformers must do besides; give `denoiser()` as before."""

    def denoiser(self) -> DiffusersDenoiser:
        """The same small denoiser at every call, with no layer at zero."""
        raise NotImplementedError

    def test_from_pretrained_reads_a_diffusers_folder(self, tmp_path: Path) -> None:
        denoiser = self.denoiser()
        denoiser.transformer.save_pretrained(tmp_path / "transformer")
        again = type(denoiser).from_pretrained(str(tmp_path), subfolder="transformer").eval()
        rest = {k: v for k, v in denoiser.state_dict().items() if not k.startswith("transformer.")}
        again.load_state_dict(rest, strict=False)
        inputs = self.inputs(denoiser)
        assert torch.equal(again(*inputs), denoiser(*inputs))
        config = again.config()["init_args"]["config"]
        assert type(config) is dict and config["in_channels"] == denoiser.latent_channels
        assert rebuilt(again).config() == again.config()
        with pytest.raises(OSError):
            type(denoiser).from_pretrained(str(tmp_path / "none"))

    def test_loading_builds_the_weights_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        denoiser = self.denoiser()
        denoiser.transformer.save_pretrained(tmp_path)
        built: list[Any] = []
        monkeypatch.setattr(type(denoiser).library, "from_config", counting(type(denoiser).library.from_config, built))
        type(denoiser).from_pretrained(str(tmp_path))
        assert len(built) == 1, "diffusers itself builds them"

    def test_from_pretrained_lists_weights_that_are_missing(self, tmp_path: Path) -> None:
        denoiser = self.denoiser()
        denoiser.transformer.save_pretrained(tmp_path)
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        state = load_file(path)
        lost = sorted(state)[0]
        del state[lost]
        save_file(state, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=lost.replace(".", r"\.")):
            type(denoiser).from_pretrained(str(tmp_path))

    def test_overrides_change_the_config_and_unknown_keys_are_refused(self, tmp_path: Path) -> None:
        denoiser = self.denoiser()
        denoiser.transformer.save_pretrained(tmp_path)
        load = type(denoiser).from_pretrained
        assert load(str(tmp_path), overrides={"sample_size": 16}).transformer.config.sample_size == 16
        with pytest.raises(ValueError, match=r"overrides holds keys .* sample_sizes; did you mean sample_size"):
            load(str(tmp_path), overrides={"sample_sizes": 16})
        config = denoiser.init_args["config"]
        with pytest.raises(ValueError, match=r"config holds keys .* in_chanels; did you mean in_channels"):
            type(denoiser)({**config, "in_chanels": 4})

    def test_other_numbers_of_output_channels_are_refused(self) -> None:
        denoiser = self.denoiser()
        given = denoiser.latent_channels
        with pytest.raises(ValueError, match=rf"out_channels \({given + 1}\) must be {given}.*in_channels is {given}"):
            type(denoiser)({**denoiser.init_args["config"], "out_channels": given + 1})


class HeadContract:
    """Inherit, name the class `Test...` and give `head()`, for 32-pixel images."""

    takes_references = False

    def head(self) -> DiffusionHead:
        """The same small head at every call, untrained but with no layer at zero."""
        raise NotImplementedError

    def condition(self, head: DiffusionHead, seed: int = 11) -> Conditioning:
        return condition(head.cond_dim, seed=seed)

    def sample(self, head: DiffusionHead, **arguments: Any) -> Tensor:
        values = {"num_inference_steps": 2, "generator": generators(2), **arguments}
        return head.sample(values.pop("conditioning", self.condition(head)), **values)

    def test_the_loss_of_no_rows_is_empty(self) -> None:
        head = self.head()
        cond = self.condition(head)[:0]
        assert head.loss(tiny_images(1)[:0], cond, generator=[]).shape == (0,)

    def test_samples_have_the_shape_of_encoded_images(self) -> None:
        head = self.head()
        encoded = head.encode(tiny_images(2))
        sampled = self.sample(head)
        assert sampled.shape == encoded.shape
        images = head.decode(sampled)
        assert images.shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)
        assert images.min() >= -1 and images.max() <= 1

    def test_references_are_refused_by_heads_that_can_not_use_them(self) -> None:
        if self.takes_references:
            pytest.skip("this head takes references")
        head, references = self.head(), tiny_images(2)[:, None]
        with pytest.raises(ValueError, match="references"):
            self.sample(head, references=references)
        with pytest.raises(ValueError, match="references"):
            head.loss(tiny_images(2), self.condition(head), references)

    def test_its_config_builds_it_again(self) -> None:
        head = self.head()
        again = rebuilt(head)
        assert again.config() == head.config()
        again.load_state_dict(head.state_dict())
        torch.testing.assert_close(self.sample(again), self.sample(head), rtol=0, atol=1e-5)


class DiffusionHeadContract(HeadContract):
    """What a head that reads a condition must do besides; give `head()` as before."""

    def test_the_loss_has_one_finite_number_a_row_and_a_gradient(self) -> None:
        head = self.head()
        loss = head.loss(tiny_images(2), self.condition(head), generator=generators(2))
        assert loss.shape == (2,) and loss.isfinite().all()
        loss.sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())

    def test_the_loss_of_a_row_is_its_generators_alone(self) -> None:
        head, cond = self.head(), self.condition(self.head())
        images = tiny_images(2)
        both = head.loss(images, cond, generator=generators(2))
        torch.testing.assert_close(both, head.loss(images, cond, generator=generators(2)), rtol=0, atol=0)
        alone = head.loss(images[1:], cond[1:], generator=generators(1, first_seed=1))
        torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(both, head.loss(images, cond, generator=generators(2, first_seed=5)))

    def test_the_loss_depends_on_the_condition(self) -> None:
        head = self.head()
        first, second = (
            head.loss(tiny_images(2), self.condition(head, seed), generator=generators(2)) for seed in (11, 12)
        )
        assert not torch.allclose(first, second)

    def test_a_sample_is_its_generators_alone(self) -> None:
        head = self.head()
        both = self.sample(head)
        assert torch.equal(both, self.sample(head))
        alone = self.sample(head, conditioning=self.condition(head)[1:], generator=generators(1, first_seed=1))
        torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-4)
        assert not torch.allclose(both, self.sample(head, generator=generators(2, first_seed=5)))

    def test_given_noise_takes_the_place_of_drawing_it(self) -> None:
        head = self.head()
        noise = torch.randn(self.sample(head).shape, generator=torch.Generator().manual_seed(3))
        kept = noise.clone()
        first = self.sample(head, latents=noise, generator=None)
        assert torch.equal(first, self.sample(head, latents=noise, generator=generators(2)))
        assert torch.equal(noise, kept), "the caller's noise was changed"
        assert not torch.allclose(first, self.sample(head))

    def test_guidance_needs_a_negative_condition_unless_it_is_off(self) -> None:
        head = self.head()
        plain = self.sample(head, guidance_scale=1.0)
        assert torch.equal(plain, self.sample(head, guidance_scale=1.0, negative=self.condition(head, 12)))
        with pytest.raises(ValueError, match=r"guidance_scale \(2.0\) needs a negative"):
            self.sample(head, guidance_scale=2.0)
        same = self.sample(head, guidance_scale=2.0, negative=self.condition(head))
        torch.testing.assert_close(same, plain, rtol=0, atol=1e-4)
        other = self.sample(head, guidance_scale=2.0, negative=self.condition(head, 12))
        assert (other - plain).abs().max() > 1e-3

    def test_masks_travel_with_guidance(self) -> None:
        """The two branches may differ in which positions count."""
        head, cond = self.head(), self.condition(self.head())
        mask = cond.full_mask().clone()
        mask[:, 0] = False
        whole = self.sample(head, guidance_scale=2.0, negative=cond)
        masked = self.sample(head, guidance_scale=2.0, negative=replace(cond, mask=mask))
        assert (whole - masked).abs().max() > 1e-4

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_inference_steps": 0}, r"num_inference_steps \(0\)"),
            ({"guidance_scale": -1.0}, r"guidance_scale \(-1.0\)"),
            ({"latents": torch.zeros(2, 1, 8, 8)}, "latents has shape"),
            ({"generator": generators(3)}, "3 generators for 2 rows"),
            ({"generator": generators(1)}, "1 generators for 2 rows"),
        ],
    )
    def test_wrong_arguments_of_sampling_are_refused(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.sample(self.head(), **arguments)

    def test_a_list_of_generators_must_hold_one_a_row(self) -> None:
        head = self.head()
        for count in (1, 3):
            with pytest.raises(ValueError, match=f"{count} generators for 2 rows"):
                head.loss(tiny_images(2), self.condition(head), generator=generators(count))
