"""Makes published.json: features of tiny networks by PyTorch in float64.

    python -m venv oracle && oracle/bin/pip install torch==2.13.0 timm transformers safetensors
    oracle/bin/python tests/models/make_published.py

timm asks for torchvision, of which it needs nothing here.
"""

import importlib.machinery
import json
import pathlib
import sys
import tempfile
from unittest import mock

import safetensors.torch
import torch
import transformers as t

# Transformers looks at torchvision when a class is first asked for: before the stand-in below.
CLASSES = [
    getattr(t, f"{name}{part}")
    for name in ("Dinov2", "Dinov2WithRegisters", "DINOv3ViT", "ViT", "DeiT", "Swin", "CLIP",
                 "Siglip", "MetaClip2")
    for part in ("Config", "Model")
]  # fmt: skip
for name in ("", ".transforms", ".transforms.functional", ".datasets", ".ops", ".ops.misc",
             ".transforms.v2", ".models", ".models.feature_extraction", ".io"):  # fmt: skip
    module = mock.MagicMock(__spec__=importlib.machinery.ModuleSpec("torchvision", None))
    sys.modules[f"torchvision{name}"] = module

import timm  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import published  # noqa: E402

MEAN, DEVIATION = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
PROCESSOR = {"image_mean": MEAN, "image_std": DEVIATION, "rescale_factor": 1 / 255, "resample": 3}
ViT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 24,
       "patch_size": 4}  # fmt: skip
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40,
        "intermediate_size": 48, "max_position_embeddings": 8, "eos_token_id": 39,
        "bos_token_id": 38, "pad_token_id": 39}  # fmt: skip
XLM = TEXT | {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}


def fill(model):
    """Gives a model the weights that `published.value` makes; returns their shapes."""
    state = model.state_dict()
    shapes = {n: list(v.shape) for n, v in state.items() if v.is_floating_point()}
    for name, shape in shapes.items():
        state[name].copy_(torch.from_numpy(published.value(name, shape)))
    return shapes


def first(output):
    return output.last_hidden_state[:, 0]


def cases(model, call, sizes):
    found = []
    for size in sizes:
        pixels = torch.from_numpy(published.images(size)).double().requires_grad_()
        scaled = (pixels / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
        features = call(model, scaled.permute(0, 3, 1, 2), size)
        loss = (features * torch.from_numpy(published.direction(features.shape[1]))).sum()
        (slope,) = torch.autograd.grad(loss, pixels)
        slope = slope[0].reshape(size // 4, 4, size // 4, 4, 3).sum((1, 3)).flatten()
        shape = list(features.shape)
        found.append(
            {"size": size, "shape": shape, "features": short(features), "slope": short(slope)}
        )
    return found


def hugging_face(config, model_class, call, sizes, **parts):
    # Through a file: in memory, Transformers has other names than in files.
    with tempfile.TemporaryDirectory() as folder:
        model_class(config, **parts).float().save_pretrained(folder)
        path = pathlib.Path(folder) / "model.safetensors"
        shapes = {n: list(v.shape) for n, v in safetensors.torch.load_file(path).items()}
        published.write(path, {n: published.value(n, shape) for n, shape in shapes.items()})
        model, report = model_class.from_pretrained(
            folder, dtype=torch.float64, output_loading_info=True, **parts
        )
        assert not any(report.values()), report
    model.eval()
    files = {"config.json": json.loads(config.to_json_string(use_diff=False)),
             "preprocessor_config.json": PROCESSOR}  # fmt: skip
    kept = ("text_config", "vision_config")
    drop = ("id2label", "label2id", "transformers_version")
    for part in (files["config.json"], *(files["config.json"].get(k, {}) for k in kept)):
        for key in [k for k, v in part.items() if k in drop or v is None]:
            del part[key]
    found = {"files": files, "shapes": shapes, "cases": cases(model, call, sizes)}
    return found | ({"texts": texts(model, call, sizes[0])} if call is tower else {})


def texts(model, images, size):
    """Vectors of token ids, of length 1, and their products with the images' of a size."""
    config = model.config.text_config
    ids = torch.from_numpy(published.token_ids(config.eos_token_id, config.pad_token_id))
    pooled = model.text_model(ids).pooler_output
    if hasattr(model, "text_projection"):
        pooled = model.text_projection(pooled)
    scaled = (torch.from_numpy(published.images(size)) / 255 - torch.tensor(MEAN)) / torch.tensor(
        DEVIATION
    )
    vectors = torch.nn.functional.normalize(pooled)
    scores = vectors @ torch.nn.functional.normalize(images(model, scaled.permute(0, 3, 1, 2), 0)).T
    return {"vectors": short(vectors), "scores": short(scores)}


def short(x):
    return [float(f"{v:.8g}") for v in x.flatten().tolist()]


def plain(model, pixels, size):
    return first(model(pixels))


def resized(model, pixels, size):
    return first(model(pixels, interpolate_pos_encoding=True))


def tower(model, pixels, size):
    pooled = model.vision_model(pixels, interpolate_pos_encoding=True).pooler_output
    return model.visual_projection(pooled) if hasattr(model, "visual_projection") else pooled


def timm_dinov2(registers):
    args = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 1.0,
            "img_size": 24, "num_classes": 0, "reg_tokens": registers,
            "no_embed_class": registers > 0}  # fmt: skip

    def make(size):
        model = (
            timm.models.vision_transformer.VisionTransformer(**args, dynamic_img_size=True)
            .eval()
            .double()
        )
        shapes = fill(model)
        return model, shapes

    model, shapes = make(24)
    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    config = {"architecture": name, "num_classes": 0, "model_args": {"num_heads": 2},
              "pretrained_cfg": {"mean": MEAN, "std": DEVIATION, "input_size": [3, 24, 24],
                                 "interpolation": "bicubic"}}  # fmt: skip
    call = lambda model, pixels, size: model(pixels)  # noqa: E731
    return {
        "files": {"config.json": config},
        "shapes": shapes,
        "cases": cases(model, call, (24, 32)),
    }


def open_clip_siglip():
    """As OpenCLIP names it, over timm's network."""
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=24, patch_size=4, embed_dim=128, depth=1, num_heads=2, mlp_ratio=1.0,
        class_token=False, global_pool="map", num_classes=0, dynamic_img_size=True,
    ).eval().double()  # fmt: skip
    holder = torch.nn.Module()
    holder.visual = torch.nn.Module()
    holder.visual.trunk = model
    holder.logit_scale = torch.nn.Parameter(torch.zeros([]))
    shapes = fill(holder)
    config = {
        "model_cfg": {
            "vision_cfg": {"image_size": 24, "timm_model_name": "vit_base_patch16_siglip_224"}
        },
        "preprocess_cfg": {"mean": MEAN, "std": DEVIATION, "interpolation": "bicubic"},
    }
    call = lambda holder, pixels, size: holder.visual.trunk(pixels)  # noqa: E731
    return {
        "files": {"open_clip_config.json": config},
        "weights": "open_clip_model.safetensors",
        "shapes": shapes,
        "cases": cases(holder, call, (24, 16)),
    }


def main():
    torch.set_default_dtype(torch.float64)
    mlp = {"intermediate_size": 48}
    clip = {"vision_config": ViT | mlp | {"projection_dim": 20}, "text_config": TEXT,
            "projection_dim": 20}  # fmt: skip
    worldwide = clip | {"text_config": XLM}
    found = {
        "dinov2": hugging_face(t.Dinov2Config(**ViT, mlp_ratio=2), t.Dinov2Model, plain, (24, 16)),
        "dinov2_with_registers": hugging_face(
            t.Dinov2WithRegistersConfig(**ViT, mlp_ratio=2, num_register_tokens=3),
            t.Dinov2WithRegistersModel, plain, (24, 16),
        ),
        "dinov3": hugging_face(
            t.DINOv3ViTConfig(**ViT, **mlp, num_register_tokens=2), t.DINOv3ViTModel, plain,
            (24, 32),
        ),
        "vit": hugging_face(t.ViTConfig(**ViT, **mlp), t.ViTModel, resized, (24, 32),
                            add_pooling_layer=False),
        "deit": hugging_face(t.DeiTConfig(**ViT, **mlp), t.DeiTModel, resized, (24, 16),
                             add_pooling_layer=False),
        "swin": hugging_face(
            t.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[2, 1], num_heads=[2, 2],
                         window_size=4, mlp_ratio=2.0),
            t.SwinModel, lambda m, x, size: m(x).last_hidden_state.mean(1), (32,),
            add_pooling_layer=False,
        ),
        "clip": hugging_face(t.CLIPConfig(**clip), t.CLIPModel, tower, (24, 32)),
        "siglip": hugging_face(
            t.SiglipConfig(vision_config=ViT | mlp, text_config=TEXT), t.SiglipModel, tower,
            (24, 32),
        ),
        "metaclip_2": hugging_face(t.MetaClip2Config(**worldwide), t.MetaClip2Model, tower, (24,)),
        "timm_dinov2": timm_dinov2(0),
        "timm_dinov2_registers": timm_dinov2(2),
        "open_clip_siglip": open_clip_siglip(),
    }  # fmt: skip
    lines = [f'"{name}": {json.dumps(family)}' for name, family in found.items()]
    published.PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(published.PATH.stat().st_size)


if __name__ == "__main__":
    main()
