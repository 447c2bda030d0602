"""Prints the sourced golden numbers of SDAS and of RealNet's networks, and the differences of adref from them.

    pip install tqdm; pip download --no-deps guided-diffusion-sdk==1.0.0   (unpacked: FOLDER/guided_diffusion)
    PYTHONPATH=tools python tools/sources/sdas.py FOLDER

Programs, run on 2026-11-24 with torch 2.13.0 on a CPU:
- guided_diffusion of the package guided-diffusion-sdk 1.0.0 (names no licence): openai/guided-diffusion (MIT) with
  additions, samplers with gradients and PLMS, that no number here uses; U-Net, classifier, tables, losses, samplers.
- cnulab/RealNet (MIT) as stored at commit c7c14f2 (FOLDER/RealNet, without docstrings and unused functions):
  samples/{sample_utils,gauss_sample,spaced_sample}.py, models/sdas/model_utils.py (attention and what it needs),
  models/recon/{recon,simple_recon}.py, models/rrs/rrs.py, models/afs/afs.py (without its forward).
Only numbers of theirs are kept here. Weights and inputs: the hash of tools/hash_recipe.py, by these programs' names.
Each line has mean, standard deviation and two hash-weighted means; then the largest difference to ours, relative to
the largest value.
"""

import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from hash_recipe import digits, fill, hashed, report

from adref.layers.diffusion_unet import DiffusionUNet, NoisyClassifier, step_embedding
from adref.methods.realnet.networks import Discriminator, FeatureUNet, SimpleNetwork, enlarge
from adref.methods.realnet.selection import ResidualSelection, afs_losses, select
from adref.methods.sdas import method as sdas
from adref.methods.sdas import options as sdas_options
from adref.methods.sdas import schedule as sdas_schedule

SIZE = (16, 16)
LEAST = {"size": SIZE, "width": 32, "multipliers": (1, 2), "blocks": 1, "attention_factors": (2,), "head_width": 32,
         "categories": ("a", "b", "c"), "classifier_width": 32, "guidance_scale": 0.0}  # fmt: skip
LABELS = torch.tensor([2, 0])
TO_REALNET = {
    "unet": (("down.", "input_blocks."), ("middle.", "middle_block."), ("up.", "output_blocks.")),
    "simple": (("first.", "block1."), ("second.", "block2."), ("units.", "_residual_stack._layers."),
               (".layers.", "._block."), ("up.0.", "upblock1."), ("out.", "upblock2.")),
    "discriminator": (("units.", "decoder1.0._layers."), (".layers.", "._block."), ("reduce.0.", "decoder1.1."),
                      ("reduce.1.", "decoder1.2."), ("reduce.3.", "decoder2.0."), ("reduce.5.", "decoder2.2."),
                      ("out.", "decoder3.")),
}  # fmt: skip


class Listed:
    """Stands for a random number generator: hands out one image's part of listed arrays."""

    def __init__(self, arrays: list[torch.Tensor], index: int):
        self.rest = iter([array[index].numpy() for array in arrays])

    def standard_normal(self, shape, dtype):
        return next(self.rest)


def noises(count: int) -> list[torch.Tensor]:
    return [12**0.5 * (hashed(f"noise {k}", 2, 3, *SIZE) - 0.5) for k in range(count)]


def bytes_of(name: str, count: int) -> torch.Tensor:
    """Makes images of 8-bit values in [-1, 1], with many at both ends."""
    return ((1.2 * hashed(name, count, 3, *SIZE) - 0.1).clamp(0, 1) * 255).round() / 255 * 2 - 1


def compare(case: str, theirs, ours) -> None:
    theirs, ours = (torch.as_tensor(x).detach().double() for x in (theirs, ours))
    report(case, theirs)
    print(f"    difference {((theirs - ours).abs().max() / theirs.abs().max()).item():.1e}")


def copy_weights(theirs, ours, renames=()) -> None:
    """Copies weights by name, strictly; both ways where no name is changed."""
    state = {key: value.clone() for key, value in theirs.state_dict().items()}
    if not renames:
        theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict({key: state[realnet_name(key, renames)] for key in ours.state_dict()} if renames else state)
    assert len(state) == len(ours.state_dict())
    theirs.load_state_dict(state)


def realnet_name(key: str, renames) -> str:
    """Translates adref's name of a tensor to RealNet's."""
    for old, new in renames:
        key = key.replace(old, new, 1) if old.startswith(".") or key.startswith(old) else key
    return key


def guided(folder: str) -> SimpleNamespace:
    sys.path.insert(0, folder)
    from guided_diffusion import gaussian_diffusion, losses, nn, respace, unet

    return SimpleNamespace(diffusion=gaussian_diffusion, losses=losses, nn=nn, respace=respace, unet=unet)


def realnet(folder: str) -> SimpleNamespace:
    sys.path.insert(0, f"{folder}/RealNet")
    helper = SimpleNamespace(to_device=lambda batch: batch)
    sys.modules.setdefault("utils", SimpleNamespace(misc_helper=helper))
    sys.modules.setdefault("utils.misc_helper", helper)
    from models.afs import afs
    from models.recon import recon, simple_recon
    from models.rrs import rrs
    from samples import sample_utils, spaced_sample

    afs.tqdm = lambda steps, desc: steps

    return SimpleNamespace(afs=afs, recon=recon, simple=simple_recon, rrs=rrs, utils=sample_utils, spaced=spaced_sample)


def their_unet(g, classes: int | None, blocks: int = 1, multipliers=(1, 2)):
    unet = g.unet.UNetModel(
        image_size=16, in_channels=3, model_channels=32, out_channels=6, num_res_blocks=blocks,
        attention_resolutions=(2,), channel_mult=multipliers, num_classes=classes, num_heads=4, num_head_channels=32,
        use_scale_shift_norm=True, resblock_updown=True,
    )  # fmt: skip
    return fill(unet).float()


def their_classifier(g):
    return fill(
        g.unet.EncoderUNetModel(
            image_size=16, in_channels=3, model_channels=32, out_channels=3, num_res_blocks=1,
            attention_resolutions=(2,), channel_mult=(1, 2), num_head_channels=32, use_scale_shift_norm=True,
            resblock_updown=True, pool="attention",
        )
    ).float()  # fmt: skip


def networks(g) -> None:
    """Compares U-Nets, classifier, embedding."""
    x, t = 4 * hashed("image", 2, 3, 16, 24) - 2, torch.tensor([7, 950])
    compare("embedding", g.nn.timestep_embedding(t, 32), step_embedding(t, 32))
    cases = {"u-net, labels": (3, 1, (1, 2)), "u-net": (None, 2, (1, 2)), "u-net, three levels": (None, 1, (1, 2, 2))}
    for name, (classes, blocks, multipliers) in cases.items():
        theirs = their_unet(g, classes, blocks, multipliers)
        form = {"width": 32, "multipliers": multipliers, "blocks": blocks, "attention": (2,), "head_width": 32}
        ours = DiffusionUNet(**form, groups=32, classes=classes or 0).eval()
        copy_weights(theirs, ours)
        labels = (LABELS,) if classes else ()
        compare(name, theirs(x, t, *labels), ours(x, t, *labels))
    form = {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "head_width": 32, "groups": 32}
    theirs, ours = their_classifier(g), NoisyClassifier(3, SIZE, **form).eval()
    copy_weights(theirs, ours)
    compare("classifier", theirs(x[..., :16], t), ours(x[..., :16], t))
    full = g.unet.UNetModel
    with torch.device("meta"):
        form = {"channel_mult": (1, 1, 2, 2, 4, 4), "num_head_channels": 64, "resblock_updown": True}
        net = full(256, 3, 256, 6, 2, (8, 16, 32), num_classes=15, use_scale_shift_norm=True, **form)
        own = {"width": 256, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (8, 16, 32), "head_width": 64}
        ours = DiffusionUNet(**own, groups=32, classes=15)
    same = {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    print("full u-net, 15 labels:", sum(p.numel() for p in net.parameters()), "same names and shapes:", same)


def diffusion(g, steps=1000, spacing=None, loss="MSE"):
    d = g.diffusion
    kept = range(steps) if spacing is None else g.respace.space_timesteps(steps, spacing)
    return g.respace.SpacedDiffusion(
        use_timesteps=kept, betas=d.get_named_beta_schedule("linear", steps),
        model_mean_type=d.ModelMeanType.EPSILON, model_var_type=d.ModelVarType.LEARNED_RANGE,
        loss_type=d.LossType[loss],
    )  # fmt: skip


def tables(g, r) -> None:
    """Compares all tables, whole and respaced, and the kept steps."""
    names = {"beta": "betas", "abar": "alphas_cumprod", "abar_before": "alphas_cumprod_prev",
             "variance": "posterior_variance", "log_variance": "posterior_log_variance_clipped",
             "c1": "posterior_mean_coef1", "c2": "posterior_mean_coef2"}  # fmt: skip
    whole = sdas_schedule.schedule_of(sdas_schedule.linear_betas())
    for spacing, ours in (
        (None, whole),
        ("ddim20", sdas_schedule.respace(whole, sdas_schedule.spaced_steps(1000, 20))),
    ):
        theirs = diffusion(g, spacing=spacing)
        other = r.spaced.SpacedDiffusionBeatGans(1000, spacing or "ddim1000", "linear")
        assert theirs.timestep_map == other.timestep_map == ours.steps.tolist()
        for name, their_name in names.items():
            compare(f"table {name}, {spacing}", getattr(theirs, their_name), getattr(ours, name))
            assert (getattr(theirs, their_name) == getattr(other, their_name)).all()
    compare("betas of 400", g.diffusion.get_named_beta_schedule("linear", 400), sdas_schedule.linear_betas(400))
    picked = torch.tensor([0, 1, 999])
    theirs = g.diffusion._extract_into_tensor(diffusion(g).alphas_cumprod, picked, (3, 1, 1, 1))
    compare("at", theirs, sdas_schedule.at(whole.abar, picked))
    print("ddim20:", sorted(g.respace.space_timesteps(1000, "ddim20")))
    accepted, differ = [], []
    for count in range(1, 1001):
        lists = []
        for function in (lambda c=count: sorted(g.respace.space_timesteps(1000, f"ddim{c}")),
                         lambda c=count: sdas_schedule.spaced_steps(1000, c)):  # fmt: skip
            try:
                lists.append(function())
            except ValueError:
                lists.append(None)
        differ += [count] if lists[0] != lists[1] else []
        accepted += [count] if lists[0] else []
    print("counts that ddimN takes:", len(accepted), sum(accepted), "differences", differ)


def losses(g, r) -> None:
    """Compares likelihood, one term of the bound, the whole loss."""
    x = bytes_of("bytes", 3).double()
    means, scales = x + 0.1 * (hashed("means", 3, 3, *SIZE) - 0.5), -4 - hashed("scales", 3, 3, *SIZE).double()
    theirs = g.losses.discretized_gaussian_log_likelihood(x, means=means, log_scales=scales)
    compare("likelihood", theirs, sdas.log_likelihood(x, means, scales))

    method, t = sdas.SDAS(sdas_options.Options(**LEAST)), torch.tensor([0, 1, 500])
    noise, v = 12**0.5 * (hashed("noise", 3, 3, *SIZE) - 0.5), 3 * hashed("v", 3, 3, *SIZE) - 1.5
    eps = noise + 0.5 * (hashed("eps", 3, 3, *SIZE) - 0.5)
    for source, process in {
        "guided": diffusion(g),
        "realnet": r.spaced.SpacedDiffusionBeatGans(1000, "ddim1000", "linear"),
    }.items():
        noisy = process.q_sample(x, t, noise.double())
        output = torch.cat((eps, v), dim=1).double()
        theirs = process._vb_terms_bpd(lambda *a, o=output, **k: o, x, noisy, t, clip_denoised=False)["output"]
        ours = method.variational(x, noisy, t, eps.double(), v.double())
        print(f"bound at t = 0, 1, 500, {source}: {digits(*theirs)}")
        print(f"    relative differences {[f'{d:.1e}' for d in ((ours - theirs) / theirs).tolist()]}")
    theirs = diffusion(g).p_mean_variance(lambda *a, o=output, **k: o, noisy, t)["log_variance"]
    table = method.schedule
    ours = method.log_variance(
        v.double(), sdas_schedule.at(table.beta.log(), t), sdas_schedule.at(table.log_variance, t)
    )
    compare("log variance", theirs, ours)

    unet = their_unet(g, 3)
    for steps, kind in ((1000, "MSE"), (1000, "RESCALED_MSE"), (100, "RESCALED_MSE"), (100, "MSE"), (1000, "realnet")):
        drawn = torch.tensor([0, 1, steps // 2, steps - 1])
        image, labels = bytes_of("bytes", 4), torch.tensor([2, 0, 1, 1])
        noise = 12**0.5 * (hashed("noise", 4, 3, *SIZE) - 0.5)
        if kind == "realnet":
            process = r.spaced.SpacedDiffusionBeatGans(1000, "ddim1000", "linear")
        else:
            process = diffusion(g, steps, None, kind)
        terms = process.training_losses(unet, image, drawn, {"y": labels}, noise)
        print(f"loss, T = {steps}, {kind}: " + ", ".join(f"{k} {digits(*v)}" for k, v in sorted(terms.items())))
        means = {key: terms[key].mean().item() for key in ("mse", "vb", "loss")}
        method = sdas.SDAS(sdas_options.Options(**LEAST))
        method.schedule = sdas_schedule.schedule_of(sdas_schedule.linear_betas(steps))
        copy_weights(unet, method.network)
        ours = method.loss(sdas.Batch(image, noise, drawn, labels))
        print(f"    means {digits(*means.values())} ours {digits(*(ours[k] for k in ('simple', 'vlb', 'total')))}")
    classifier = their_classifier(g)
    method = sdas.SDAS(sdas_options.Options(**{**LEAST, "classifier_steps": 1}))
    copy_weights(classifier, method.classifier)
    noisy = diffusion(g).q_sample(image, drawn, noise)
    ours = method.loss(sdas.Batch(image, noise, drawn, labels), "classify")["total"]
    compare("classifier's loss", F.cross_entropy(classifier(noisy, drawn), labels)[None], ours[None])


def samplers(g, r) -> None:
    """Compares both samplers, guided and unguided, and the gradient that guides."""
    unet, classifier = their_unet(g, 3), their_classifier(g)

    def towards(scale):
        def gradient(x, t, y):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                chosen = F.log_softmax(classifier(x, t), dim=-1)[range(len(x)), y]
                return scale * torch.autograd.grad(chosen.sum(), x)[0]

        return gradient

    def ours(s=0.0, **changes):
        method = sdas.SDAS(sdas_options.Options(**{**LEAST, **changes}))
        copy_weights(unet, method.average)
        if method.classifier is not None:
            copy_weights(classifier, method.classifier)
        drawn = noises(method.options.sampling_steps + 1)
        return method.sample(LABELS.tolist(), [Listed(drawn, i) for i in range(2)], [s, s])

    plain = {"sampling_steps": 20}
    ddim = {**plain, "sampler": "ddim"}
    cases = [
        ("g", "two steps", {"sampling_steps": 2}, {}),
        ("g", "ancestral", plain, {}),
        ("r", "ancestral, s 0.2", plain, {"s": 0.2}),
        ("g", "ancestral, guided", {**plain, "guidance_scale": 20.0, "classifier_steps": 1}, {}),
        ("r", "ancestral, guided, s 0.2", {**plain, "guidance_scale": 20.0, "classifier_steps": 1}, {"s": 0.2}),
        ("g", "ddim", ddim, {"eta": 0.0}),
        ("r", "ddim, s 0.02", ddim, {"s": 0.02}),
        ("g", "ddim, guided", {**ddim, "guidance_scale": 20.0, "classifier_steps": 1}, {"eta": 0.0}),
        ("r", "ddim, guided, s 0.02", {**ddim, "guidance_scale": 20.0, "classifier_steps": 1}, {"s": 0.02}),
    ]  # fmt: skip
    for source, name, options, arguments in cases:
        count = options["sampling_steps"]
        if source == "g":
            process = diffusion(g, spacing=f"ddim{count}")
        else:
            process = r.spaced.SpacedDiffusionBeatGans(1000, f"ddim{count}", "linear")
        first, *rest = noises(count)
        scale = options.get("guidance_scale")
        loop = process.ddim_sample_loop if options.get("sampler") else process.p_sample_loop
        with mock.patch("torch.randn_like", side_effect=[*rest, first]):  # the last step multiplies its noise by 0
            condition = {"cond_fn": towards(scale)} if scale else {}
            theirs = loop(unet, shape=first.shape, noise=first, model_kwargs={"y": LABELS}, device="cpu", **condition,
                          **arguments)  # fmt: skip
        compare(f"{name} ({'guided diffusion' if source == 'g' else 'RealNet'})", theirs,
                ours(s=arguments.get("s", 0.0), **options))  # fmt: skip
    method = sdas.SDAS(sdas_options.Options(**{**LEAST, "classifier_steps": 1}))
    copy_weights(classifier, method.classifier)
    x, t = 4 * hashed("image", 2, 3, *SIZE) - 2, torch.tensor([7, 950])
    compare("pull", towards(1.0)(x, t, LABELS), method.classifier_gradient(x, t, LABELS))


def small_parts(g) -> None:
    """Compares the moving average of the weights, and images as bytes."""
    method = sdas.SDAS(sdas_options.Options(**LEAST, ema_warmup=False))
    source, target = their_unet(g, 3), their_unet(g, 3)
    copy_weights(target, method.average)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(0.5)
    copy_weights(source, method.network)
    for _ in range(2):
        g.nn.update_ema(target.parameters(), source.parameters(), rate=0.9)
        with mock.patch.object(sdas, "EMA_DECAY", 0.9):
            method.update_average()
    compare("average", target.out[2].weight, method.average.out[2].weight)
    x = 2.4 * hashed("picture", 2, 3, *SIZE) - 1.2
    theirs = np.clip((x.numpy() + 1) * 127.5, a_min=0, a_max=255).astype(np.uint8)  # as RealNet's sample.py has it
    compare("bytes", theirs.astype(float), sdas.to_bytes(x))


def feature_networks(r) -> None:
    """Compares the networks and the selection of features."""

    def unet_of(channels):
        return r.recon.UNetModel(channels, channels, channels // 2, 2, (1, 2, 4), (2, 4))

    with torch.device("meta"):
        for channels in (128, 256, 512, 768):
            print("feature u-net", channels, sum(p.numel() for p in unet_of(channels).parameters()),
                  sum(p.numel() for p in FeatureUNet(channels, groups=32).parameters()))  # fmt: skip
    theirs, ours = fill(unet_of(64)).float(), FeatureUNet(64, groups=32).eval()
    theirs.load_state_dict(theirs.state_dict())
    ours.load_state_dict({key: theirs.state_dict()[unet_name(key, theirs)] for key in ours.state_dict()})
    assert len(ours.state_dict()) == len(theirs.state_dict())
    x = 4 * hashed("features", 2, 64, 8, 12) - 2
    compare("feature u-net", theirs(x), ours(x))

    theirs, ours = fill(r.simple.SimpleUnet(6, 3)), SimpleNetwork(6, depth=3).double().eval()
    copy_weights(theirs, ours, TO_REALNET["simple"])
    x = 4 * hashed("features", 2, 6, 8, 12).double() - 2
    compare("simple network", theirs(x), ours(x))

    planes, strides = {"block1": 24, "block2": 40}, {"block1": 4, "block2": 8}
    theirs = fill(r.rrs.RRS(planes, strides, ["max", "mean"], [10, 12], 2, False))
    ours = ResidualSelection(64, by_max=10, by_mean=12, normalised=False).double().eval()
    judge = Discriminator(22, size=(32, 32), side=3).double().eval()
    ours.running_mean.copy_(theirs.bn_idx.running_mean), ours.running_var.copy_(theirs.bn_idx.running_var)
    judge.load_state_dict({k: theirs.state_dict()[realnet_name(k, TO_REALNET["discriminator"])]
                           for k in judge.state_dict()})  # fmt: skip
    blocks = {"block1": hashed("e 1", 2, 24, 8, 8).double() ** 2, "block2": hashed("e 2", 2, 40, 4, 4).double() ** 2}
    inputs = {"residual": blocks, "image": torch.zeros(2, 3, 32, 32)}
    raw = torch.cat([blocks["block1"], theirs.block2_upsample(blocks["block2"])], dim=1)
    own = torch.cat([blocks["block1"], enlarge(blocks["block2"], (8, 8))], dim=1)
    for training in (False, True):
        theirs.train(training), ours.train(training), judge.train(training)
        with mock.patch.object(theirs, "select_ano_index", wraps=theirs.select_ano_index) as selections:
            logits = theirs(inputs)["logit"]
        calls = [call.args for call in selections.call_args_list]
        indices = [theirs.select_ano_index(*arguments) for arguments in calls]
        chosen, own_indices = ours(own)
        print(f"indices, training {training}:", torch.cat(indices, dim=1).tolist(),
              "same:", torch.equal(torch.cat(indices, dim=1), own_indices))  # fmt: skip
        compare(f"chosen, training {training}", raw.gather(1, torch.cat(indices, 1)[..., None, None].expand_as(chosen)),
                chosen)  # fmt: skip
        compare(f"logits, training {training}", logits, judge(chosen))
        compare(f"running mean, training {training}", theirs.bn_idx.running_mean, ours.running_mean)
        compare(f"running variance, training {training}", theirs.bn_idx.running_var, ours.running_var)
    for by in (68, 128, 256):
        theirs = r.rrs.RRS(planes, strides, ["max", "mean"], [by, by], 2, False)
        both = (theirs, Discriminator(2 * by, size=(256, 256), side=3))
        print("discriminator", 2 * by, [sum(p.numel() for p in module.parameters()) for module in both])
    # Blocks of strides 2 and 4, as those of EfficientNet-B4: what lies between is 2 x the finest block, not image / 2.
    theirs = fill(r.rrs.RRS(planes, {"block1": 2, "block2": 4}, ["max", "mean"], [10, 12], 2, False))
    inputs["image"] = torch.zeros(2, 3, 16, 16)
    judge = Discriminator(22, size=(16, 16), side=3).double().eval()
    judge.load_state_dict({k: theirs.state_dict()[realnet_name(k, TO_REALNET["discriminator"])]
                           for k in judge.state_dict()})  # fmt: skip
    ours.running_mean.copy_(theirs.bn_idx.running_mean), ours.running_var.copy_(theirs.bn_idx.running_var)
    compare("logits, finest stride 2", theirs(inputs)["logit"], judge(ours.eval()(own)[0]))


def unet_name(key: str, theirs) -> str:
    """Translates adref's name of a tensor of the feature U-Net to RealNet's."""
    for old, new in TO_REALNET["unet"]:
        key = new + key.removeprefix(old) if key.startswith(old) else key
    names = theirs.state_dict()
    head, last = key.rsplit(".", 1)
    path, part = head.rsplit(".", 1) if "." in head else ("", head)
    parts = {"norm": ["in_layers.0", "norm"], "convolution": ["in_layers.2"], "resample": ["h_upd.conv"],
             "shortcut": ["skip_connection", "x_upd.conv"]}  # fmt: skip
    return next(name for p in parts.get(part, [part]) if (name := f"{path}.{p}.{last}" if path else key) in names)


def selection(r) -> None:
    """Compares AFS: sums of the losses over two batches, and the indices."""
    planes, strides = {"layer1": 6, "layer2": 9}, {"layer1": 4, "layer2": 8}
    layers = [{"idx": "layer1", "planes": 3}, {"idx": "layer2", "planes": 4}]
    structure = [{"name": "both", "layers": layers, "stride": 4}, {"name": "own", "layers": layers[1:], "stride": 8}]
    batches = []
    for i in range(2):
        feats = {}
        for part in ("feats", "gt_feats"):
            feats[part] = {"layer1": {"feat": hashed(f"{part} 1 {i}", 2, 6, 8, 8)},
                           "layer2": {"feat": hashed(f"{part} 2 {i}", 2, 9, 4, 4)}}  # fmt: skip
        mask = torch.zeros(2, 1, 32, 32)
        mask[:, :, 5 + i : 20, 8:27] = 1
        batches.append({"mask": mask, **feats})
    model = SimpleNamespace(device="cpu", backbone=lambda batch, train: batch)
    for block in structure:
        afs, kept = r.afs.AFS(planes, strides, structure, 2), []
        topk = torch.topk
        with mock.patch("torch.topk", lambda x, **k: kept.append(x.clone()) or topk(x, **k)):  # noqa: B023
            criterion = torch.nn.MSELoss(reduction="none")
            afs.init_block_idxs(block, model, batches, criterion, distributed=False)
        for layer, sums in zip(block["layers"], kept):
            size = {4: (8, 8), 8: (4, 4)}[block["stride"]]
            ours = sum(
                afs_losses((enlarge(b["feats"][layer["idx"]]["feat"], size)
                            - enlarge(b["gt_feats"][layer["idx"]]["feat"], size)).square(), b["mask"], align="mask")
                for b in batches
            )  # fmt: skip
            indices = afs.indexes[f"{block['name']}_{layer['idx']}"].tolist()
            compare(f"AFS {block['name']} {layer['idx']}", sums, ours)
            print("    indices", indices, "ours", select(ours, layer["planes"]).tolist())


def main() -> None:
    print("torch", torch.__version__)
    g, r = guided(sys.argv[1]), realnet(sys.argv[1])
    with torch.no_grad():
        networks(g), tables(g, r), losses(g, r), samplers(g, r), small_parts(g)
        feature_networks(r), selection(r)


if __name__ == "__main__":
    main()
