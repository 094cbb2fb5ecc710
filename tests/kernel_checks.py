"""What the tests of the kernels share: comparison with a reference, and fresh memory that is seen where it is read."""

import torch


def values_and_gradients(function, tensors):
    """Outputs of a function, and the gradients of a random weighting of them by every tensor."""
    outputs = function(*tensors)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(out.shape, generator=generator).bfloat16().to(out) for out in outputs]  # exact in any type
    return [out.detach() for out in outputs] + list(torch.autograd.grad(outputs, tensors, upstream))


def check(fused, reference, tensors, rtol=1e-10, atol=1e-10):
    """Both functions agree in values and in the gradient of every tensor."""
    results = zip(values_and_gradients(fused, tensors), values_and_gradients(reference, tensors), strict=True)
    for number, (got, expected) in enumerate(results):
        torch.testing.assert_close(
            got, expected, rtol=rtol, atol=atol, msg=lambda text, n=number: f"result {n}: {text}"
        )


def exact(tensors):
    """The tensors in float64, to be differentiated."""
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def relative_errors(got, expected):
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(got, expected, strict=True)]


def poison(monkeypatch) -> None:
    """Fills fresh memory of floats with NaN, so that what a kernel leaves out would show."""

    def poisoned(make):
        def run(*sizes, **options):
            tensor = make(*sizes, **options)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return run

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
