"""What several gateways share, in Redis: pictures, what callers spend, who draws what. Needs the extra `redis`."""


class OutOfReach(Exception):
    """Redis does not answer; go on with what this process knows."""
