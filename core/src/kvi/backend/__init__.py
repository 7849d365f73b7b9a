"""What authors of backends need and would else write by hand, one file each."""
