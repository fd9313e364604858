"""Writes a parity case: what transformers and PEFT compute for one model, in float32, for `sft parity CASE` to compare with.

usage:
  make_parity_case.py OUT --model FOLDER [--text FILE]         a model that exists (real weights)
  make_parity_case.py OUT --model-type llama [--set KEY=JSON]  a tiny model with random weights
  make_parity_case.py OUT --model FOLDER --quantize nf4        the same, its linear layers quantised by bitsandbytes

The case folder OUT holds:
  config.json, model.safetensors   the model as transformers saves it, float32
  case.safetensors                 input_ids i64 [B,T]; labels i64 [B,T] (Hugging Face alignment: not shifted; -100 ignored);
                                   logits f32 [B,T,V]; loss f32 [1], the mean over supervised positions
  grads.safetensors                d loss / d parameter, by transformers' parameter names
  full_losses.json                 loss at each AdamW step on all weights (lr 1e-3, betas 0.9/0.999, eps 1e-8,
                                   weight decay 0.01 on everything, no clipping), always the same batch
  (a model with mxfp4 is one in which everything is trained, as it is decoded; another quantised model comes as bitsandbytes' checkpoint, and without grads.safetensors and full_losses.json: it is frozen)
  adapter/                         a PEFT LoRA adapter (B random; not with --no-adapter), and lora_losses.json: the same steps on the adapter

needs: torch, transformers, peft, safetensors; for --quantize nf4, fp4 and int8 bitsandbytes, for awq autoawq 0.2.9 and for gptq and
       gptq_act auto-gptq 0.7.1 (of these two single files are loaded: their sources on PYTHONPATH are enough)
"""
import argparse
import copy
import importlib.util
import json
import os
import shutil
import sys
import types

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

IGNORE_INDEX = -100
TINY = dict(
    vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", help="folder to write (replaced when it is a case already)")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a Hugging Face folder with a causal language model")
    source.add_argument("--model-type", help="a transformers model_type, given random weights")
    p.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="with --model-type: a key of config.json")
    p.add_argument("--text", help="with --model: take the ids from this text file, by the model's tokenizer")
    p.add_argument("--rows", type=int, default=2)
    p.add_argument("--tokens", type=int, default=17, help="tokens a row")
    p.add_argument("--alike", type=int, default=0, help="so many tokens that all rows begin with, and half as many again from the second row on")
    p.add_argument("--steps", type=int, default=6, help="AdamW steps of the two training curves")
    p.add_argument("--lora-rank", type=int, default=4)
    p.add_argument("--no-adapter", action="store_true", help="for models that PEFT cannot put an adapter on")
    p.add_argument("--quantize", choices=("nf4", "fp4", "int8", "awq", "gptq", "gptq_act", "fp8", "mxfp4"), help="with --model: quantise its linear layers (mxfp4: its experts)")
    p.add_argument("--plain-scales", action="store_true", help="with --quantize nf4 or fp4: no double quantisation")
    p.add_argument("--attention", default="eager", help="transformers' implementation: its `eager` adds Falcon's ALiBi twice, `sdpa` once")
    p.add_argument("--seed", type=int, default=1234)
    return p.parse_args()


def random_model(model_type, settings, attention, generator):
    """A tiny model in which every parameter matters: norm weights are not 1 and biases are not 0."""
    keys = dict(TINY)
    for item in settings:
        key, _, value = item.partition("=")
        keys[key] = json.loads(value)
    config = AutoConfig.for_model(model_type, **keys)
    config._attn_implementation = attention
    switch_dropout_off(config)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.08, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def file_of(package, path):
    """One module of a package, without the package."""
    folder = importlib.util.find_spec(package).submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], os.path.join(folder, path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GROUP = 8


def integers(weight):
    """Codes [out, in], zeros and scales [out, groups] of 4 bits, rounded to nearest."""
    rows = weight.reshape(weight.shape[0], -1, GROUP)
    low, high = rows.amin(-1).clamp(max=0), rows.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(1, 15)
    codes = (rows / scales.float().unsqueeze(-1) + zeros.unsqueeze(-1)).round().clamp(0, 15)
    return codes.reshape(weight.shape).int(), zeros.int(), scales


def awq(weight):
    """What AWQ's kernels read of a weight, and what autoawq decodes it to."""
    packing = file_of("awq", "utils/packing_utils.py")
    codes, zeros, scales = (t.T.contiguous() for t in integers(weight))

    def words(t):
        eights = t.reshape(t.shape[0], -1, 8)[..., packing.AWQ_ORDER].long()
        words = (eights << (4 * torch.arange(8))).sum(-1)
        return words.where(words < 2**31, words - 2**32).int()

    tensors = dict(qweight=words(codes), qzeros=words(zeros), scales=scales)
    return tensors, packing.dequantize_gemm(tensors["qweight"], tensors["qzeros"], scales.float(), 4, GROUP).T


def gptq(weight, order=None):
    """The same by auto-gptq; `order` are the inputs, group by group."""
    if order is not None:
        weight = weight[:, order]
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    _, zeros, scales = integers(weight)
    layer = file_of("auto_gptq", "nn_modules/qlinear/qlinear_cuda_old.py").QuantLinear(4, GROUP, weight.shape[1], weight.shape[0], False)
    layer.pack(linear, scales.float(), zeros.float(), None)
    groups = torch.arange(weight.shape[1], dtype=torch.int32) // GROUP
    if order is not None:
        # What is quantised together lies apart.
        back = order.argsort()
        linear.weight.data, groups = weight[:, back], groups[back]
        layer = file_of("auto_gptq", "nn_modules/qlinear/qlinear_cuda.py").QuantLinear(4, GROUP, weight.shape[1], weight.shape[0], False)
        layer.pack(linear, scales.float(), zeros.float(), groups)
    layer.scales = layer.scales.half().float()
    decoded = layer(torch.eye(weight.shape[1])).T
    return dict(qweight=layer.qweight, qzeros=layer.qzeros, scales=layer.scales.half(), g_idx=groups), decoded


def gptq_act(weight):
    """The same with `desc_act`."""
    return gptq(weight, torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(weight.shape[0])))


def fp8(weight):
    """The same in fp8 by transformers."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    tiles = weight.reshape(weight.shape[0] // GROUP, GROUP, -1, GROUP)
    scales = tiles.abs().amax((1, 3)) / 448
    codes = (tiles / scales[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
    quantizer = types.SimpleNamespace(quantization_config=types.SimpleNamespace(weight_block_size=[GROUP, GROUP]))
    decoded = Fp8Dequantize(quantizer).convert({"weight$": [codes], "weight_scale_inv": [scales]}, full_layer_name="w")["w"]
    return dict(weight=codes, weight_scale_inv=scales), decoded


def mxfp4(weight):
    """Experts [E, in, out] as gpt-oss has them, and what transformers decodes them to."""
    from transformers.integrations.mxfp4 import FP4_VALUES, convert_moe_packed_tensors

    blocks = weight.transpose(1, 2).unflatten(-1, (-1, 32))
    exponents = blocks.abs().amax(-1).log2().floor() - 2
    codes = (blocks / exponents.exp2().unsqueeze(-1)).unsqueeze(-1).sub(torch.tensor(FP4_VALUES)).abs().argmin(-1)
    packed = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
    scales = (exponents + 127).to(torch.uint8)
    return dict(_blocks=packed, _scales=scales), convert_moe_packed_tensors(packed, scales, dtype=torch.float32)


OTHER_TOOLS = {
    "awq": (awq, dict(quant_method="awq", bits=4, group_size=GROUP, version="gemm", zero_point=True)),
    "gptq": (gptq, dict(quant_method="gptq", bits=4, group_size=GROUP, desc_act=False, sym=False)),
    "gptq_act": (gptq_act, dict(quant_method="gptq", bits=4, group_size=GROUP, desc_act=True, sym=False)),
    "fp8": (fp8, dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[GROUP, GROUP])),
    "mxfp4": (mxfp4, dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"])),
}


def write_packed(model, args):
    """Replaces the linear layers but the head in the files by codes, and in the model by what they stand for."""
    pack, config = OTHER_TOOLS[args.quantize]
    path = os.path.join(args.out, "model.safetensors")
    tensors = load_file(path)
    for name, parameter in model.named_parameters():
        if args.quantize == "mxfp4" and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            codes, decoded = pack(parameter.data.clone())
            del tensors[name]
            tensors.update({name + key: value.contiguous() for key, value in codes.items()})
            parameter.data = decoded.float().contiguous()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head" and args.quantize != "mxfp4":
            codes, decoded = pack(module.weight.data.clone())
            del tensors[name + ".weight"]
            tensors.update({f"{name}.{key}": value.contiguous() for key, value in codes.items()})
            module.weight.data = decoded.float().contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    path = os.path.join(args.out, "config.json")
    keys = json.load(open(path))
    json.dump({**keys, "quantization_config": config}, open(path, "w"), indent=2)


def quantization(args):
    if args.quantize == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=args.quantize, bnb_4bit_use_double_quant=not args.plain_scales, bnb_4bit_compute_dtype=torch.float32
    )


def with_decoded_weights(model):
    """Quantised layers as plain ones of the values that bitsandbytes decodes: its definition of their product.

    Its own kernels on a CPU round differently: those for 4 bits want sizes that a tiny model has not, and that for 8 bits
    rounds the activations to 8 bits too.
    """
    from bitsandbytes import functional

    for name, module in list(model.named_modules()):
        kind, weight = type(module).__name__, getattr(module, "weight", None)
        if kind == "Linear8bitLt":
            values = functional.int8_vectorwise_dequant(weight.data, weight.SCB)
        elif kind == "Linear4bit":
            values = functional.dequantize_4bit(weight.data, weight.quant_state)
        else:
            continue
        plain = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        plain.weight = torch.nn.Parameter(values.float(), requires_grad=False)
        plain.bias = module.bias
        model.set_submodule(name, plain)


def switch_dropout_off(config):
    """Before the model is made: its modules keep the probabilities that they were made with."""
    for key, value in vars(config).items():
        if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(config, key, 0.0)


def draw_batch(args, model, generator):
    """Ids from the text or at random; a prefix of each row is unsupervised, in odd rows a piece at the end too."""
    rows, tokens = args.rows, args.tokens
    if args.text:
        ids = AutoTokenizer.from_pretrained(args.model)(open(args.text, encoding="utf-8").read())["input_ids"]
        if len(ids) < rows * tokens:
            sys.exit(f"{args.text}: {len(ids)} tokens, but --rows {rows} x --tokens {tokens} need {rows * tokens}")
        input_ids = torch.tensor(ids[: rows * tokens]).reshape(rows, tokens)
    else:
        input_ids = torch.randint(3, model.get_input_embeddings().num_embeddings, (rows, tokens), generator=generator)
    labels = input_ids.clone()
    for row in range(rows):
        labels[row, : tokens * (2 + row % 2) // 6] = IGNORE_INDEX
        if row % 2:
            labels[row, tokens - tokens // 6 :] = IGNORE_INDEX
    # What several rows begin with is supervised in the first of them alone.
    for row in range(1, rows):
        alike = args.alike if row == 1 else args.alike + args.alike // 2
        input_ids[row, :alike] = input_ids[row - 1, :alike]
        labels[row, :alike] = IGNORE_INDEX
    return input_ids, labels


def cross_entropy(logits, labels):
    shifted = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
    return torch.nn.functional.cross_entropy(shifted, labels[:, 1:].reshape(-1), ignore_index=IGNORE_INDEX)


def train(model, input_ids, labels, steps):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    losses = []
    for _ in range(steps):
        loss = cross_entropy(model(input_ids=input_ids, use_cache=False).logits, labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def keep_only(folder, names):
    for name in os.listdir(folder):
        if name not in names:
            os.remove(os.path.join(folder, name))


def write_model(model, out):
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(out, max_shard_size="1TB")
    keep_only(out, ("config.json", "model.safetensors"))


def write_adapter(model, args, input_ids, labels, generator):
    adapter = os.path.join(args.out, "adapter")
    lora = LoraConfig(r=args.lora_rank, lora_alpha=2 * args.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0)
    peft_model = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=generator)
    # the adapter must not name a folder of the machine it was made on
    peft_model.peft_config["default"].base_model_name_or_path = None
    peft_model.save_pretrained(adapter)
    keep_only(adapter, ("adapter_config.json", "adapter_model.safetensors"))
    path = os.path.join(adapter, "adapter_config.json")
    config = json.load(open(path))
    config["target_modules"].sort()  # a set in PEFT: without this the file differs from run to run
    json.dump(config, open(path, "w"), indent=2)
    losses = train(peft_model, input_ids, labels, args.steps)
    json.dump(losses, open(os.path.join(adapter, "lora_losses.json"), "w"))


def main():
    args = parse_arguments()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    if args.model:
        config = AutoConfig.from_pretrained(args.model)
        switch_dropout_off(config)
        by_bitsandbytes = args.quantize and args.quantize not in OTHER_TOOLS
        quantized = {"quantization_config": quantization(args)} if by_bitsandbytes else {}
        model = AutoModelForCausalLM.from_pretrained(
            args.model, config=config, dtype=torch.float32, attn_implementation=args.attention, **quantized
        )
    else:
        model = random_model(args.model_type, args.set, args.attention, generator)
    # Not `train`: dropout is off, and a router that draws its choices in training would never give the same numbers.
    model.eval()
    input_ids, labels = draw_batch(args, model, generator)

    if os.path.isdir(args.out):
        if os.listdir(args.out) and not os.path.exists(os.path.join(args.out, "case.safetensors")):
            sys.exit(f"{args.out}: exists and is not a parity case; choose another folder")
        shutil.rmtree(args.out)
    os.makedirs(args.out)
    write_model(model, args.out)
    if args.quantize in OTHER_TOOLS:
        write_packed(model, args)
    elif args.quantize:
        with_decoded_weights(model)

    logits = model(input_ids=input_ids, use_cache=False).logits.float()
    loss = cross_entropy(logits, labels)
    case = dict(input_ids=input_ids, labels=labels, logits=logits.detach().contiguous(), loss=loss.detach().reshape(1))
    save_file(case, os.path.join(args.out, "case.safetensors"))
    if args.quantize in (None, "mxfp4"):
        loss.backward()
        grads = {n: p.grad.clone().contiguous() for n, p in model.named_parameters() if p.grad is not None}
        save_file(grads, os.path.join(args.out, "grads.safetensors"))
        model.zero_grad()
        full_losses = train(copy.deepcopy(model), input_ids, labels, args.steps)
        json.dump(full_losses, open(os.path.join(args.out, "full_losses.json"), "w"))
    if not args.no_adapter:
        write_adapter(model, args, input_ids, labels, generator)
    print(f"{args.out}: loss {loss.item():.5f}, {sum(p.numel() for p in model.parameters())} parameters, logits {tuple(logits.shape)}")


if __name__ == "__main__":
    main()
