"""Every way of telling the cloud model what a picture shows, beside the injected cache."""
