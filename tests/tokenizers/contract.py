"""What every image tokenizer must do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from blip3o.checkpoints import load_part, save_part
from blip3o.tokenizers import ImageTokenizer, TrainableTokenizer
from tests.tiny import rebuilt, seeded


class ImageTokenizerContract:
    """Inherit, name the class `Test...` and give `tokenizer()`."""

    def tokenizer(self) -> ImageTokenizer:
        """The same small tokenizer at every call."""
        raise NotImplementedError

    def images(self, tokenizer: ImageTokenizer, count: int = 2) -> Tensor:
        side = tokenizer.image_size
        return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(7)) * 2 - 1

    def test_num_tokens_counts_what_encode_returns_at_every_scale(self) -> None:
        tokenizer = self.tokenizer()
        images = self.images(tokenizer)
        assert tokenizer.num_tokens() == tokenizer.grid_size**2 * tokenizer.tokens_per_cell
        for scale in range(1, tokenizer.num_scales + 1):
            tokens = tokenizer.encode(images, scale)
            assert tokens.ids.shape == (2, tokenizer.num_tokens(scale))
            assert tokens.grid == tokenizer.token_grid(scale)
            assert tokens.grid[0] * tokens.grid[1] == tokenizer.num_tokens(scale)
            assert tokenizer.cells(tokens.features).shape[1] == (tokenizer.grid_size // scale) ** 2

    def test_encode_gives_ids_of_the_codebook_and_features_of_its_width(self) -> None:
        tokenizer = self.tokenizer()
        tokens = tokenizer.encode(self.images(tokenizer))
        assert tokens.ids.dtype == torch.int64
        assert tokens.ids.min() >= 0 and tokens.ids.max() < tokenizer.codebook_size
        assert len(tokens.ids.unique()) > 1, "a constant tokenizer proves nothing"
        assert tokens.features.shape == (*tokens.ids.shape, tokenizer.feature_dim)
        assert tokens.loss.shape == ()

    def test_embed_gives_the_features_that_encode_gave(self) -> None:
        tokenizer = self.tokenizer()
        tokens = tokenizer.encode(self.images(tokenizer))
        torch.testing.assert_close(tokenizer.embed(tokens.ids), tokens.features, rtol=1e-5, atol=1e-6)

    def test_decode_gives_what_decodes_to_says(self) -> None:
        tokenizer = self.tokenizer()
        images = self.images(tokenizer)
        ids = torch.randint(
            tokenizer.codebook_size, (2, tokenizer.num_tokens()), generator=torch.Generator().manual_seed(1)
        )
        decoded = tokenizer.decode(ids)
        assert tokenizer.decodes_to in ("pixels", "features")
        if tokenizer.decodes_to == "pixels":
            assert decoded.shape == images.shape
            assert decoded.min() >= -1 and decoded.max() <= 1
        else:
            assert decoded.shape[:2] == (2, tokenizer.grid_size**2)
        assert not torch.equal(decoded[0], decoded[1]), "different ids must decode differently"

    def test_the_same_image_gets_the_same_ids_in_any_batch(self) -> None:
        tokenizer = self.tokenizer()
        images = self.images(tokenizer)
        ids = tokenizer.encode(images).ids
        assert torch.equal(tokenizer.encode(images).ids, ids)
        assert torch.equal(tokenizer.encode(images[1:]).ids, ids[1:])

    def test_gradients_pass_the_quantizer_and_reach_the_images(self) -> None:
        tokenizer = self.tokenizer()
        images = self.images(tokenizer).requires_grad_()
        features = tokenizer.encode(images).features
        weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
        (features * weights).sum().backward()
        assert images.grad is not None and images.grad.abs().sum() > 0

    def test_images_of_another_shape_are_refused(self) -> None:
        tokenizer = self.tokenizer()
        images = self.images(tokenizer)
        for wrong in (images[..., :-1], images[..., :-1, :-1], images[0], images[:, :1]):
            with pytest.raises(ValueError, match="images has shape"):
                tokenizer.encode(wrong)

    def test_ids_outside_the_codebook_or_of_another_shape_are_refused(self) -> None:
        tokenizer = self.tokenizer()
        ids = torch.zeros(1, tokenizer.num_tokens(), dtype=torch.int64)
        for wrong in (ids - 1, ids + tokenizer.codebook_size, ids[0]):
            with pytest.raises(ValueError, match="ids has shape"):
                tokenizer.embed(wrong)
        with pytest.raises(ValueError, match="ids has shape"):
            tokenizer.decode(ids[:, :-1])

    def test_unknown_scales_are_refused(self) -> None:
        tokenizer = self.tokenizer()
        for wrong in (0, tokenizer.num_scales + 1):
            with pytest.raises(ValueError, match=rf"scale \({wrong}\)"):
                tokenizer.num_tokens(wrong)
            with pytest.raises(ValueError, match=rf"scale \({wrong}\)"):
                tokenizer.encode(self.images(tokenizer), wrong)

    def test_continuous_features_are_one_a_token_or_refused(self) -> None:
        tokenizer = self.tokenizer()
        images = self.images(tokenizer)
        if tokenizer.continuous_dim is None:
            with pytest.raises(ValueError, match="gives no continuous features"):
                tokenizer.continuous_features(images)
        else:
            shape = (2, tokenizer.num_tokens(), tokenizer.continuous_dim)
            assert tokenizer.continuous_features(images).shape == shape

    def test_a_saved_tokenizer_loads(self, tmp_path: Path) -> None:
        tokenizer = self.tokenizer().eval()
        save_part(tokenizer, tmp_path / "tokenizer.safetensors")
        again = rebuilt(tokenizer).eval()
        load_part(again, tmp_path / "tokenizer.safetensors")
        ids = tokenizer.encode(self.images(tokenizer)).ids
        assert torch.equal(again.encode(self.images(tokenizer)).ids, ids)
        assert torch.equal(again.decode(ids), tokenizer.decode(ids))

    def test_it_works_in_bfloat16(self) -> None:
        tokenizer = self.tokenizer().eval().to(torch.bfloat16)
        tokens = tokenizer.encode(self.images(tokenizer).bfloat16())
        assert tokens.features.dtype == tokenizer.embed(tokens.ids).dtype == torch.bfloat16
        decoded = tokenizer.decode(tokens.ids)
        assert decoded.dtype == torch.bfloat16 and decoded.isfinite().all()

    def test_its_config_builds_it_again(self) -> None:
        tokenizer = self.tokenizer()
        again = rebuilt(tokenizer).eval()
        shapes = {key: value.shape for key, value in tokenizer.state_dict().items()}
        assert {key: value.shape for key, value in again.state_dict().items()} == shapes
        assert again.config() == tokenizer.config()
        again.load_state_dict(tokenizer.state_dict())
        images = self.images(tokenizer)
        assert torch.equal(again.encode(images).ids, tokenizer.encode(images).ids)


class TrainableTokenizerContract(ImageTokenizerContract):
    """For those that learn by reconstruction; `falls_to` says how far the error must fall in 40 steps on one batch."""

    falls_to = 0.7

    def tokenizer(self) -> TrainableTokenizer:
        """The same small tokenizer at every call."""
        raise NotImplementedError

    def test_features_are_decoded_to_what_is_read(self) -> None:
        tokenizer = self.tokenizer()
        images = self.images(tokenizer)
        tokens, reads = tokenizer.encode(images), tokenizer.reads(images)
        decoded = tokenizer.decode_features(tokens.features)
        assert decoded.shape == reads.shape
        assert decoded.requires_grad
        if decoded.shape == images.shape:
            decoded = decoded.clamp(-1, 1)
        if decoded.shape == tokenizer.decode(tokens.ids).shape:
            torch.testing.assert_close(tokenizer.decode(tokens.ids), decoded, rtol=1e-4, atol=1e-4)

    def test_it_learns_to_reconstruct_one_batch(self) -> None:
        tokenizer = self.tokenizer().train()
        images = self.images(tokenizer, count=4)
        optimizer = torch.optim.AdamW([p for p in tokenizer.parameters() if p.requires_grad], lr=5e-3)
        errors = []
        with seeded(0):
            for _ in range(40):
                tokens = tokenizer.encode(images)
                error = (tokenizer.decode_features(tokens.features) - tokenizer.reads(images)).square().mean()
                optimizer.zero_grad()
                (error + tokens.loss).backward()
                optimizer.step()
                errors.append(error.item())
        assert sum(errors[-5:]) / 5 < self.falls_to * errors[0]
