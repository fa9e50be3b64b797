"""What a device costs on the link: bytes of frames, pictures and video at IP level."""
