"""The command `python -m text2image`: words in, files out, drawn by the running server or in this process."""
