"""HTTP for applications and operators, in the form that OpenAI's clients speak."""
