"""A pair of models not trained here: a frozen Gemma 3 270M answers from SmolLM2-135M's cache."""
