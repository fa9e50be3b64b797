"""A pair of models not trained here: SmolLM2-135M's cache, a frozen Gemma 3 270M's answers."""
