"""Writes the golden values of the small ops, computed by torch in float64. usage: make_goldens.py (needs torch)"""
import json, os
import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
here = os.path.dirname(os.path.abspath(__file__))


def write(name, **values):
    lists = {k: v.detach().flatten().tolist() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
    with open(os.path.join(here, name + ".json"), "w") as f:
        json.dump(lists, f)
        f.write("\n")


x = torch.tensor([[0.5, -1.0, 2.0, 0.25], [1.5, 0.0, -0.5, 3.0]], requires_grad=True)
w = torch.tensor([1.1, 0.9, -0.5, 2.0], requires_grad=True)
y = F.rms_norm(x, (4,), w, 1e-5)
y.backward(torch.tensor([[1, -1, 2, 0.5], [0.25, 3, -2, 1]]))
write("rms_norm", y=y, dx=x.grad, dw=w.grad)

x = torch.linspace(-6, 6, 25)
write("gated", x=x, silu=F.silu(x), gelu_pytorch_tanh=F.gelu(x, approximate="tanh"),
      relu2=F.relu(x).square(), gelu=F.gelu(x), relu=F.relu(x), sigmoid=F.sigmoid(x), linear=x)

z = torch.randn(3, 6, requires_grad=True)
t = torch.tensor([5, 0, 3])
nll = F.cross_entropy(z, t, reduction="none")
nll.mean().backward()
write("cross_entropy", logits=z, targets=t.tolist(), nll=nll, gradient=z.grad)

p = torch.nn.Parameter(torch.randn(5))
start, steps = p.detach().clone(), []
optimizer = torch.optim.AdamW([p], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
for _ in range(3):
    p.grad = torch.randn(5)
    optimizer.step()
    steps.append({"gradient": p.grad.tolist(), "parameter": p.tolist()})
write("adamw", start=start, steps=steps)

x = torch.tensor([[0.5, -1.0, 2.0, 0.25], [1.5, 0.0, -0.5, 3.0]], requires_grad=True)
w = torch.tensor([1.1, 0.9, -0.5, 2.0], requires_grad=True)
y = F.layer_norm(x, (4,), w, torch.tensor([0.1, -0.2, 0.3, 0.4]), 1e-5)
y.backward(torch.tensor([[1.0, -1.0, 2.0, 0.5], [0.25, 3.0, -2.0, 1.0]]))
write("layer_norm", y=y, dx=x.grad, dw=w.grad)

# transformers' XIELUActivation
x = torch.tensor([-3.0, -0.7, -1e-3, -1e-7, 0.0, 1e-3, 0.4, 2.5], requires_grad=True)
alpha_p, alpha_n, beta, eps = (torch.tensor(v, requires_grad=r) for v, r in [(0.3, True), (-0.9, True), (0.5, False), (-1e-6, False)])
positive, negative = F.softplus(alpha_p), beta + F.softplus(alpha_n)
y = torch.where(x > 0, positive * x * x + beta * x, (torch.expm1(torch.min(x, eps)) - x) * negative + beta * x)
y.backward(torch.tensor([1.0, -1.0, 2.0, 0.5, 0.25, 3.0, -2.0, 1.0]))
write("xielu", x=x, y=y, dx=x.grad, dalpha_p=alpha_p.grad, dalpha_n=alpha_n.grad)
