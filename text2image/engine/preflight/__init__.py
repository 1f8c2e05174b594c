"""What is wrong with a model, told before it is loaded: when a server starts, and by `python -m text2image check`.

`files.py` looks for what is missing or damaged, `networks.py` compares weights with configurations, `fitting.py` the
parts with each other and with the device, and `finite.py` reads every number. All but the last read headers alone.
"""
