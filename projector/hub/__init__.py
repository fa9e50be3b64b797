"""One hub for many edge models: a shared latent space and cloud half that edge models join."""
