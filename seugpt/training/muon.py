"""Muon: a matrix moves by its momentum made orthogonal, so equally far in all directions.

Source: Jordan (2024), https://kellerjordan.github.io/posts/muon
"""

import torch

from seugpt.training.sharding import gather_matrices, local_tensor, scatter_matrices

# The first three steps of Polar Express (2505.16932): a x + b x^3 + c x^5 maps singular values of
# 0.001 and more to between 0.14 and 1.86. More or fewer steps, and narrower ranges, all cost loss
# or time (docs/SPEED.md).
POLAR_EXPRESS_COEFFS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)


def muon_param_groups(model):
    """Parameter groups of the blocks' matrices, one per shape; each `rows` rows are one matrix.

    c_attn stacks the matrices of queries, keys and values, and swiglu's c_fc those of gate and
    value; each is a matrix of its own to Muon.
    """
    config = model.config
    rows = {
        "attn.c_attn.weight": config.kv_heads * config.head_size,  # GQA: queries in groups of these
        "attn.c_proj.weight": config.n_embd,
        "mlp.c_fc.weight": config.mlp_hidden_size,
        "mlp.c_proj.weight": config.n_embd,
    }
    groups = []
    for name, num_rows in rows.items():
        params = [block.get_parameter(name) for block in model.h]
        groups.append({"params": params, "rows": num_rows})
    return groups


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, and weight decay as in AdamW (2502.16982)."""

    def __init__(self, groups, lr, lr_scale, momentum, weight_decay, dtype):
        """`groups`: from muon_param_groups; `dtype`: the run's, in which it multiplies too."""
        defaults = {
            "lr": lr,
            "lr_scale": lr_scale,
            "momentum": momentum,
            "weight_decay": weight_decay,
        }
        super().__init__(groups, defaults)
        self.found_inf = None  # a tensor; 1.0 skips the step, as in torch's fused optimizers
        # Not in float16, which ends at 65,504.
        self.dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["momentum"] = torch.zeros_like(param)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            rows = group["rows"]
            gradients = [local_tensor(p.grad) for p in group["params"]]
            momenta = [local_tensor(self.state[p]["momentum"]) for p in group["params"]]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            nesterov = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
            nesterov = gather_matrices(nesterov, group["params"])
            columns = nesterov.shape[-1]  # of (layers, rows of all matrices, columns)
            update = orthogonalize(nesterov.view(-1, rows, columns).to(self.dtype))
            # Contiguous, as _foreach_add_ takes a slow path for transposed tensors.
            update = update.reshape(nesterov.shape).type_as(nesterov).contiguous()
            update = scatter_matrices(update, group["params"])
            if self.found_inf is not None:
                update = torch.where(self.found_inf > 0, 0.0, update)
            params = [local_tensor(p) for p in group["params"]]
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            scale = max(1, rows / columns) ** 0.5
            torch._foreach_add_(params, update.unbind(), alpha=-group["lr"] * scale)


def orthogonalize(matrices):
    """Roughly U Vᵀ of each M = U S Vᵀ, the nearest orthogonal matrix. (n, rows, columns)."""
    if matrices.shape[-2] > matrices.shape[-1]:  # multiply along the shorter side
        return orthogonalize(matrices.mT).mT
    norms = matrices.norm(dim=(-2, -1), keepdim=True)
    X = matrices / (1.01 * norms + 1e-7)  # singular values up to 1
    for a, b, c in POLAR_EXPRESS_COEFFS:
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # b A + c A A
        X = torch.baddbmm(X, B, X, beta=a)  # a X + B X
    return X
