"""The words that every part shares: settings, messages, errors, limits. No torch, no transport."""
