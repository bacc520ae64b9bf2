"""What to know of a GPU before it is measured: attention kernels, dropout, batch sizes, decoding.

    python docs/tools/gpu_probe.py sdpa dropout batch decode

Each part prints as it goes, so that a run that is cut off has told something. --smoke runs all
parts at tiny sizes on any device.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from model import GPT, ModelConfig, compile_model, make_autocast, pick_device  # noqa: E402
from seugpt.benchmark.contenders import synchronize  # noqa: E402
from seugpt.benchmark.hardware import median_seconds  # noqa: E402
from seugpt.cli.command import command  # noqa: E402
from seugpt.cli.config_parser import parse_configs  # noqa: E402
from seugpt.generation.decoder import Decoder, generate_tokens  # noqa: E402
from seugpt.generation.sampling import SamplingParams  # noqa: E402
from seugpt.training.memory import prepare_device  # noqa: E402

GPT2 = ModelConfig(vocab_size=50304)
TINY = ModelConfig(vocab_size=64, block_size=16, n_layer=1, n_head=2, n_embd=16)
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


@dataclass(frozen=True)
class ProbeConfig:
    parts: Annotated[tuple[str, ...], "sdpa, dropout, batch, decode; none: all"] = ()
    smoke: Annotated[bool, "tiny sizes"] = False
    device: Annotated[str, "auto, cpu, cuda, cuda:1 or mps"] = "auto"

    def __post_init__(self):
        unknown = set(self.parts) - set(PARTS)
        if unknown:
            raise ValueError(f"parts={', '.join(unknown)}: choose {', '.join(PARTS)}")


def milliseconds(function, device):
    """The median time of a function, until the device has done its work."""

    def call():
        function()
        synchronize(device)

    return 1000 * median_seconds(call)


def attention_input(config, rows, device):
    shape = (rows, config.n_head, config.block_size, config.head_size)
    return torch.randn(3, *shape, device=device, dtype=torch.bfloat16)


def probe_sdpa(config, device):
    """Forward time of each attention kernel that runs, in bfloat16 and causal."""
    q, k, v = attention_input(config, 8, device)

    def attend():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    for name in BACKENDS:
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                ms = milliseconds(attend, device)
            print(f"sdpa {name}: {ms:.3f} ms", flush=True)
        except RuntimeError as error:
            print(f"sdpa {name}: does not run ({str(error).splitlines()[0][:80]})", flush=True)


def probe_dropout(config, device):
    """The share of weights that each kernel drops: some round p to a sixteenth."""
    n = config.head_size  # as many tokens: with the unit matrix for values the weights come out
    q, k, _ = attention_input(config, 64, device)[:, :, :, :n]
    v = torch.eye(n, device=device, dtype=torch.bfloat16).expand(q.shape)
    for p in (0.1, 0.2):
        for name in BACKENDS:
            try:
                with sdpa_kernel(getattr(SDPBackend, name)):
                    weights = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
                share = (weights == 0).float().mean().item()
                print(f"dropout {p} {name}: {share:.4f} of the weights are zero", flush=True)
            except RuntimeError:
                print(f"dropout {p} {name}: does not run", flush=True)


def probe_batch(config, device):
    """Tokens per second of forward and backward, compiled, for several batch sizes."""
    sizes = (2, 3) if config is TINY else (12, 32, 40)
    for batch_size in sizes:
        torch.manual_seed(0)
        model = GPT(config).to(device)
        autocast = make_autocast(device, torch.bfloat16)
        idx = torch.randint(config.vocab_size, (batch_size, config.block_size), device=device)

        def step(model=model, idx=idx, autocast=autocast):
            with autocast:
                loss = model(idx, idx)[1]
            loss.backward()
            model.zero_grad(set_to_none=True)

        start = time.perf_counter()
        failure = compile_model(model, step) if device.type == "cuda" else None
        seconds = time.perf_counter() - start
        ms = milliseconds(step, device)
        speed = f"{1000 * idx.numel() / ms:,.0f} tokens/s"
        print(
            f"batch {batch_size}: {ms:.1f} ms, {speed}; compiling {seconds:.0f} s {failure or ''}"
        )
        sys.stdout.flush()


def probe_decode(config, device):
    """Tokens per second of a captured decoding step."""
    model = GPT(replace(config, dropout=0.0)).to(device, torch.bfloat16).eval()
    length = config.block_size // 2
    for rows in (1, 64):
        decoder = Decoder(model, rows, length, compile=device.type == "cuda")
        start = time.perf_counter()
        prompts = [[0]] * rows
        params = SamplingParams()
        tokens = generate_tokens(decoder, prompts, length - 1, config.vocab_size, params)
        number = rows * sum(1 for _ in tokens)
        synchronize(device)
        speed = number / (time.perf_counter() - start)
        print(f"decode {rows} row(s): {speed:,.0f} tokens/s {decoder.failure or ''}", flush=True)


PARTS = {
    "sdpa": probe_sdpa,
    "dropout": probe_dropout,
    "batch": probe_batch,
    "decode": probe_decode,
}


def main(argv=None):
    with command():
        [config] = parse_configs(argv, ProbeConfig, description=__doc__, positional="parts")
        device = pick_device(config.device)
        prepare_device(device, dropout=0.0)
        for part in config.parts or PARTS:
            PARTS[part](TINY if config.smoke else GPT2, device)


if __name__ == "__main__":
    main()
