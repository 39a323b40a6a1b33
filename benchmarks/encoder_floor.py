# Copyright 2026 The moss-audio authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""How much slower the encoder is than the matrix products that it is made of, over 60 s in bfloat16.

    python -m moss_audio.benchmarks.encoder_floor

The products (linear layers, convolutions, and the two of attention) are taken down from a run and done again in their order
and grouping: with the encoder's weights, on tensors that are there before, without biases, norms, activations or softmax.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from moss_audio import MossAudioEncoder, MossAudioEncoderConfig
from moss_audio.conversion.scaffold import SIZES

from .measuring import Report, against_target, make_parser, on_gpu, publish, ratios, take_turns
from .models import DTYPES, materialize


ENCODERS = {"released": SIZES["4b"][0], "tiny": SIZES["tiny"][0]}


def make_encoder(size: str, dtype: str, seed: int, device: str) -> MossAudioEncoder:
    """An encoder of random weights, made in its dtype and on its device at once."""
    with torch.device("meta"):
        encoder = MossAudioEncoder(MossAudioEncoderConfig(**ENCODERS[size]))
    return materialize(encoder, DTYPES[dtype], device, seed)


def make_features(encoder: MossAudioEncoder, seconds: float, seed: int) -> torch.Tensor:
    """Random features of one clip as the processor returns them: `(1, mels, frames)`, float32."""
    shape = (1, encoder.config.num_mel_bins, round(100 * seconds))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(encoder.device)


def encoding(encoder: MossAudioEncoder, features: torch.Tensor) -> Callable[[], Any]:
    """A run over a clip, without gradients."""

    @torch.no_grad()
    def run():
        return encoder(features, [features.shape[2]])

    return run


# Operators that multiply matrices or stacks of them: by which function, and where their two factors stand.
_MULTIPLICATIONS = {
    "mm": (torch.mm, 0),
    "addmm": (torch.mm, 1),
    "bmm": (torch.bmm, 0),
    "baddbmm": (torch.bmm, 1),
}


class MatrixProducts(TorchDispatchMode):
    """
    Takes down the matrix products of what runs under it, as functions without arguments that do one of them again.

    Weights take part as they are, in the views that they are used in; in the place of each activation stands a random
    tensor of its shape, strides and type, one for all activations that are alike.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.products: list[Callable[[], Any]] = []
        self.flops = 0  # two for each multiplication
        self._weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        self._device = next(model.parameters()).device
        self._stand_ins: dict[tuple, torch.Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _MULTIPLICATIONS:
            multiply, first = _MULTIPLICATIONS[name]
            self._multiply(multiply, args[first], args[first + 1])
        elif name == "convolution":
            self._convolve(result, *args)
        elif name.startswith("_scaled_dot_product"):
            self._attend(*args[:3])
        return result

    def _multiply(self, multiply: Callable, left: torch.Tensor, right: torch.Tensor):
        self.flops += 2 * left.numel() * right.shape[-1]
        shape = (*left.shape[:-1], right.shape[-1])
        result = self._stand_in("result", torch.empty(shape, dtype=left.dtype, device="meta"))
        left, right = self._stand_in("left", left), self._stand_in("right", right)
        self.products.append(lambda: multiply(left, right, out=result))

    def _convolve(self, result: torch.Tensor, data: torch.Tensor, weight: torch.Tensor, bias: Any, *options: Any):
        self.flops += 2 * result.numel() * weight[0].numel()
        data, weight = self._stand_in("left", data), self._stand_in("right", weight)
        self.products.append(lambda: torch.ops.aten.convolution(data, weight, None, *options))

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor):
        """The two products of a fused attention over (windows, heads, tokens, head_dim)."""

        def like(*shape: int) -> torch.Tensor:
            return torch.empty(math.prod(query.shape[:-2]), *shape, dtype=query.dtype, device="meta")

        (queries, width), keys = query.shape[-2:], key.shape[-2]
        self._multiply(torch.bmm, like(queries, width), like(keys, width).transpose(1, 2))
        self._multiply(torch.bmm, like(queries, keys), like(keys, value.shape[-1]))

    def _stand_in(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What takes a tensor's place: itself where it is a weight, a weight's view, or one made for its like."""
        if tensor.device.type != "meta" and tensor.untyped_storage().data_ptr() in self._weights:
            return tensor.detach()
        key = (name, tensor.shape, tensor.stride(), tensor.dtype)
        if key not in self._stand_ins:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self._device)
            self._stand_ins[key] = empty.normal_()
        return self._stand_ins[key]


def products_of(encoder: MossAudioEncoder, run: Callable[[], Any]) -> MatrixProducts:
    """
    The matrix products of a run.

    Raises:
        RuntimeError: where there are fewer than the encoder has layers for: then they were done by operators unknown here.
    """
    with MatrixProducts(encoder) as taken:
        run()
    linear = sum(isinstance(module, nn.Linear) for module in encoder.modules())
    if len(taken.products) < linear + 3:
        raise RuntimeError(
            f"{len(taken.products)} matrix products were seen in a run of an encoder with {linear} linear layers and 3 "
            "convolutions; this version of torch does them by operators that are not known here."
        )
    return taken


def measure(options: argparse.Namespace) -> tuple[Report, Callable[[], Any]]:
    """The encoder and its products in turns; and the run, for a profile."""
    encoder = make_encoder(options.size, options.dtype, options.seed, options.device)
    run = encoding(encoder, make_features(encoder, options.seconds, options.seed))
    taken = products_of(encoder, run)

    def floor():
        for product in taken.products:
            product()

    ways = {"the encoder": run, "its matrix products alone": floor}
    times = take_turns(ways, options.rounds, options.device)
    slower = ratios(*times.values())
    medians = {name: statistics.median(each) for name, each in times.items()}
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    report = Report(
        header=["", "seconds", "seconds of audio a second", "Tflop a second"],
        rows=[[name, value, options.seconds / value, taken.flops / value / 1e12] for name, value in medians.items()],
        notes=[
            against_target(
                "Time of the encoder over that of its matrix products",
                slower,
                "at most 1.25",
                slower["median"] <= 1.25,
            ),
            f"{parameters / 1e9:.2f} G parameters, {options.dtype}, attention by {encoder.config._attn_implementation}; "
            f"{len(taken.products)} products of {taken.flops / 1e12:.3g} Tflop for {options.seconds:g} s.",
        ],
        values={"ratio": slower, "seconds": times, "flops": taken.flops, "products": len(taken.products)},
    )
    return report, run


def profile(run: Callable[[], Any], device: str) -> str:
    """Where the time of a run goes: a table of the operators that take most of it themselves."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu(device):
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        run()
    order = "self_cuda_time_total" if on_gpu(device) else "self_cpu_time_total"
    return profiler.key_averages(group_by_input_shape=True).table(sort_by=order, row_limit=25)


def add_encoder_options(parser: argparse.ArgumentParser):
    """`--size` and `--dtype`."""
    parser.add_argument("--size", choices=ENCODERS, default="released", help="default: released, 0.64 G parameters")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: bfloat16")


def main(arguments: Optional[list[str]] = None):
    parser = make_parser("encoder_floor", __doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the clip; default: 60")
    parser.add_argument("--profile", action="store_true", help="also print where the encoder's time goes")
    add_encoder_options(parser)
    options = parser.parse_args(arguments)
    report, run = measure(options)
    publish(report, options)
    if options.profile:
        print(profile(run, options.device))


if __name__ == "__main__":
    main()
