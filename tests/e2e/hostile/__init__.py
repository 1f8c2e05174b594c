"""What an ill-meaning client could send, made the same way in each run."""
