"""How the weights move: the learning rate of a step, AdamW for every parameter, or Muon for the hidden matrices."""

import math

import torch

# The first three steps of Polar Express (2505.16932): a x + b x^3 + c x^5 takes singular values of 0.001 and more to
# between 0.14 and 1.86. Fewer steps or more, and narrower ranges, all cost loss or time (docs/SPEED.md).
POLYNOMIALS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)


def learning_rate(step, options):
    """The learning rate of a step: warmup, then a cosine to min_lr (SGDR, 1608.03983), or constant with a cooldown."""
    if not options.decay_lr:
        return options.learning_rate
    if step < options.warmup_iters:  # 1) linear warmup; the first step already moves
        return options.learning_rate * (step + 1) / (options.warmup_iters + 1)
    if step >= options.lr_decay_iters:  # 2) after the decay
        return options.min_lr
    if options.cooldown_iters:  # 3) constant, and linear at the end (2405.18392)
        share = min(1, (options.lr_decay_iters - step) / options.cooldown_iters)
    else:  # 4) the cosine
        progress = (step - options.warmup_iters) / (options.lr_decay_iters - options.warmup_iters)
        share = 0.5 * (1 + math.cos(math.pi * progress))
    return options.min_lr + share * (options.learning_rate - options.min_lr)


def make_optimizers(model, options, device, dtype):
    """[AdamW], or [AdamW, Muon]; each parameter is in one of them. A group's lr is learning_rate times its lr_scale.

    AdamW (1711.05101) decays matrices alone: to pull a bias or a norm's weight to zero regularizes nothing.
    """
    hidden = hidden_matrices(model) if options.optimizer == "muon" else []
    taken = {id(p) for group in hidden for p in group["params"]}
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {
            "params": [p for p in rest if p.dim() >= 2],
            "weight_decay": options.weight_decay,
            "lr_scale": 1.0,
        },
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    fused = device.type in ("cpu", "cuda", "mps")  # one kernel for all parameters
    optimizers = [
        torch.optim.AdamW(
            groups, lr=options.learning_rate, betas=(options.beta1, options.beta2), fused=fused
        )
    ]
    if hidden:
        scale = options.muon_lr / options.learning_rate if options.learning_rate else 0.0
        optimizers.append(
            Muon(hidden, options.muon_lr, scale, options.beta1, options.weight_decay, dtype)
        )
    covered = [
        p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]
    ]
    assert len(covered) == len({id(p) for p in covered}) == len(list(model.parameters()))
    return optimizers


def restore_optimizers(optimizers, states, step):
    """Load what their state_dicts remembered after so many steps, and leave the hyperparameters as they are now.

    load_state_dict brings both back, and takes whatever it is given: a memory smaller than its parameter, beyond which
    a fused kernel would write. Raises ValueError and its like where the memory is not that of these parameters.
    """
    states = [states] if isinstance(states, dict) else states  # of a run before Muon was there
    for optimizer, state in zip(optimizers, states, strict=True):
        now = [
            {k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups
        ]
        optimizer.load_state_dict(state)
        for group, options in zip(optimizer.param_groups, now, strict=True):
            group.update(options)
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if step):
            for name in MEMORY[type(optimizer)]:
                tensor, shape = (
                    optimizer.state[parameter][name],
                    parameter.shape if name != "step" else (),
                )
                if tensor.shape != shape or not tensor.is_contiguous():
                    raise ValueError(
                        f"{name} has the shape {tuple(tensor.shape)}, its parameter {tuple(shape)}"
                    )


def hidden_matrices(model):
    """Groups of the blocks' matrices, each of one shape; `rows` of them at a time are one matrix to Muon.

    c_attn holds the matrices of queries, keys and values one below the other, and swiglu's c_fc its gate and value.
    """
    config = model.config
    rows = {
        "attn.c_attn.weight": config.kv_heads
        * config.head_size,  # with fewer heads of keys, queries in such groups
        "attn.c_proj.weight": config.n_embd,
        "mlp.c_fc.weight": config.hidden,
        "mlp.c_proj.weight": config.n_embd,
    }
    return [
        {"params": [block.get_parameter(name) for block in model.h], "rows": n}
        for name, n in rows.items()
    ]


class Muon(torch.optim.Optimizer):
    """A matrix moves by the momentum of its gradient, made orthogonal: equally far in all directions (Jordan, 2024).

    https://kellerjordan.github.io/posts/muon. With Nesterov's momentum, and weight decay as AdamW's (2502.16982).
    """

    def __init__(self, groups, lr, lr_scale, momentum, weight_decay, dtype):
        """groups: of `hidden_matrices`; dtype: that of the run, as the products are made in bfloat16 if it is."""
        super().__init__(
            groups,
            {"lr": lr, "lr_scale": lr_scale, "momentum": momentum, "weight_decay": weight_decay},
        )
        self.dtype = (
            torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        )  # float16 ends at 65,504
        for p in (p for group in self.param_groups for p in group["params"]):
            self.state[p]["momentum"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum, rows = group["lr"], group["momentum"], group["rows"]
            matrices = group["params"]
            gradients, memory = (
                [p.grad for p in matrices],
                [self.state[p]["momentum"] for p in matrices],
            )
            torch._foreach_lerp_(memory, gradients, 1 - momentum)
            ahead = torch.stack(
                torch._foreach_lerp(gradients, memory, momentum)
            )  # (layers, all rows, columns)
            update = orthogonalize(ahead.view(-1, rows, ahead.shape[-1]).to(self.dtype))
            update = update.reshape(ahead.shape).type_as(ahead)
            torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
            torch._foreach_add_(
                matrices, update.unbind(), alpha=-lr * max(1, rows / ahead.shape[-1]) ** 0.5
            )


# What each keeps for a parameter from the first step on; all but the number of steps have the parameter's shape.
MEMORY = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum",)}


def orthogonalize(matrices):
    """Roughly the orthogonal matrix closest to each: U Vᵀ of M = U S Vᵀ. (n, rows, columns) -> the same."""
    if matrices.shape[-2] > matrices.shape[-1]:  # the products below are of rows with rows
        return orthogonalize(matrices.mT).mT
    X = matrices / (
        1.01 * matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7
    )  # no singular value above 1
    for a, b, c in POLYNOMIALS:
        A = X @ X.mT
        X = torch.baddbmm(
            X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a
        )  # a X + (b A + c A A) X
    return X
