"""Contenders in processes of their own, measured in turn."""

import multiprocessing
import sys
import traceback

from seugpt.errors import ConfigError


class Worker:
    """A contender in its own process; worker("steps", 5) calls its method steps(5) there."""

    def __init__(self, contender_class, *arguments):
        spawn = multiprocessing.get_context("spawn")  # a fork would lack torch's threads
        self.pipe, child_pipe = spawn.Pipe()
        args = (child_pipe, contender_class, arguments)
        self.process = spawn.Process(target=serve, args=args, daemon=True)
        self.process.start()
        self.receive()

    def __call__(self, method, *arguments):
        self.pipe.send((method, arguments))
        return self.receive()

    def receive(self):
        try:
            result, error = self.pipe.recv()
        except EOFError:
            raise ConfigError(
                "a contender's process died; a smaller model or batch may fit into memory"
            ) from None
        if error:
            raise error
        return result

    def close(self):
        self.pipe.close()
        self.process.join()


def serve(pipe, contender_class, arguments):
    """In the worker's process: create the contender, call methods until the other end closes."""
    sys.stdout = sys.stderr  # baselines print what they do
    try:
        contender = contender_class(*arguments)
        pipe.send((None, None))
        while True:
            method, arguments = pipe.recv()
            pipe.send((getattr(contender, method)(*arguments), None))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:  # raised again in the other process
        error.add_note(traceback.format_exc())
        pipe.send((None, error))


def in_turn(rounds, workers, method, *arguments):
    """{name: [result of each round]}; in each round the workers run one after the other."""
    results = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            results[name].append(worker(method, *arguments))
    return results
