"""Writes quantized.json: weights, and what bitsandbytes makes of them. usage: quantized.py (needs torch, bitsandbytes)

Scales are quantised through bitsandbytes' own path for types without a compiled kernel (float64 in): its compiled CPU
kernel takes the neighbouring code for about one value in a thousand, one that lies near the middle between two.
"""
import json, os
import torch
import bitsandbytes.functional as F

torch.manual_seed(0)
here = os.path.dirname(os.path.abspath(__file__))


def flat(tensor):
    return tensor.detach().flatten().tolist()


def four_bits(weight, kind):
    codes, state = F.quantize_4bit(weight, blocksize=64, quant_type=kind)
    return {"codes": flat(codes), "scales": flat(state.absmax), "values": flat(F.dequantize_4bit(codes, state))}


def eight_bits(weight):
    codes, scales, _ = F.int8_vectorwise_quant(weight.to(torch.float16))
    return {"codes": flat(codes), "scales": flat(scales), "values": flat(F.int8_vectorwise_dequant(codes, scales))}


weights = []
for shape, outlier in [((7, 64), 1.0), ((5, 13), 1.0), ((3, 128), 8.0)]:
    weight = (torch.randn(shape) * 0.02).bfloat16().float()
    weight[0, 0] *= outlier
    if outlier > 1:
        weight[1] = 0.0
    weights.append({"shape": list(shape), "weight": flat(weight), "nf4": four_bits(weight, "nf4"),
                    "fp4": four_bits(weight, "fp4"), "int8": eight_bits(weight)})
code, scales = F.create_dynamic_map(), torch.rand(300) * 0.05
offset = scales.mean()
codes, absmax = torch.ops.bitsandbytes.quantize_blockwise((scales - offset).double(), code, 256)
values = code[codes.long()] * absmax.repeat_interleave(256)[:300] + offset
nested = {"scales": flat(scales), "offset": offset.item(), "codes": flat(codes), "absmax": flat(absmax), "values": flat(values)}
with open(os.path.join(here, "quantized.json"), "w") as f:
    json.dump({"dynamic_map": flat(code), "weights": weights, "nested": nested}, f)
    f.write("\n")
