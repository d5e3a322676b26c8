"""A subject's process: `python -m bench.peers ORDER` runs what the order names, this project's job among them."""

from importlib import import_module

from bench.orders import SubjectOrder
from bench.subjects import MODULES

if __name__ == "__main__":
    order = SubjectOrder.from_arguments()
    import_module(MODULES[order.kind]).run(order)
