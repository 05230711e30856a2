"""LightningModules, callbacks, optimizers."""
