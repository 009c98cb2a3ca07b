"""What a tool needs besides its idea: files, memory, progress, and nothing that stays changed."""
