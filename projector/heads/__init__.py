"""Task heads: small classifiers on a picture's states."""
