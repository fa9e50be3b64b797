"""What training leaves and serving loads: files, digests, signatures, certificate."""
