"""The job's process: `python -m bench.exchange ORDER`."""

from bench.exchange.job import run
from bench.orders import ExchangeOrder

if __name__ == "__main__":
    run(ExchangeOrder.from_arguments())
