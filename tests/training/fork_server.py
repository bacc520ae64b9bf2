"""Forks runs of train.py, so that many real processes import torch only once.

First it prints a line with the names of the modules that `import train` imports. Then it reads one
JSON object per line from stdin and answers each with one line:

{"argv", "folder", "environment", "output", "stderr", "setup"}: fork a run; the answer is its
    process id. Stdout goes to the existing file `output`, stderr too unless `stderr` names another
    file. `setup` is code to execute first, such as one that makes a function fail.
{"poll": process id}: the answer is the exit code, negative for a signal, or null while it runs.
"""

import importlib
import json
import os
import sys
import traceback

import train

# What a run imports only with its first optimizer, its first loss.png, and if it is sharded.
LAZY_IMPORTS = (
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "seugpt.plots.curves",
    "matplotlib.backends.backend_agg",
)


def run(job):
    """Run train.py in this process as a command in the job's folder would; never returns."""
    code = 1
    try:
        os.chdir(job["folder"])
        os.environ.update(job["environment"])
        output = os.open(job["output"], os.O_WRONLY)
        stderr = output
        if job["stderr"]:
            stderr = os.open(job["stderr"], os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(output, 1)
        os.dup2(stderr, 2)
        stdin = os.open(os.devnull, os.O_RDONLY)
        os.dup2(stdin, 0)
        sys.argv[0] = "train.py"
        exec(job["setup"], {})
        train.main(job["argv"])
        code = 0
    except SystemExit as exit:
        code = exit.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def poll(pid):
    """The exit code of a child, or None while it runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def answer(job):
    if "poll" in job:
        return poll(job["poll"])
    pid = os.fork()
    if pid == 0:
        run(job)
    return pid


def main():
    print(json.dumps(sorted(sys.modules)), flush=True)
    for module in LAZY_IMPORTS:
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
