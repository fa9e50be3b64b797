"""Who calls: certificates of devices, keys of applications and operators."""
