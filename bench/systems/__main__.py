"""A system's process: `python -m bench.systems COMMAND`."""

from importlib import import_module

from bench.harness.messages import ServeCommand
from bench.systems.registry import MODULES

if __name__ == "__main__":
    command = ServeCommand.from_arguments()
    import_module(MODULES[command.kind]).run(command)
