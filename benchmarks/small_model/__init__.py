"""What the small model can do, measured on characters and voices it has never seen."""
