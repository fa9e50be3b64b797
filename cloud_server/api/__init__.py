"""The HTTP API for applications and operators, compatible with OpenAI's clients."""
