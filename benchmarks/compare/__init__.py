"""Every way of telling the large model what a picture shows, beside the injected cache."""
