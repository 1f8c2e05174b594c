"""What the service is compared with: other designs on the same model, each a server of its own over HTTP.

Each has what helps it: the network's memory layout, the threads and the precision that the service uses, torch in the
one thread that loaded the model where its design allows that, and a warm-up. None of them saves its pictures, keeps a
metric or puts parameters into the PNG, which the service does.
"""

from typing import Any

# The fields of a picture that is asked for: text, seed, steps, guidance_scale.
Request = dict[str, Any]
# Pictures in a batch: the throughput of larger ones is hardly better, and all in a batch wait for its end.
MAX_BATCH = 8
