"""What the simulated nodes do with images, files and the cache."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image, ImageChops, ImageStat

from simulators.comfyui import Simulator
from tools.recorded_graphs import TXT2IMG, Graph, changed, img2img, node, to_websocket

from .driver import FIRST, SECOND, Driver, png, simulated, wait_until


def decoded(file: bytes) -> Image.Image:
    """Return the image of a file, completely decoded."""
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


def saved_image(driver: Driver, graph: Graph) -> Image.Image:
    """Run a graph; return the first image that it saved."""
    return decoded(driver.saved_files(graph)[0])


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of two images, 0 to 255."""
    return sum(ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean) / 3


CUSTOM_SAMPLER: Graph = {
    **changed(TXT2IMG, ks=None, neg=None),
    "noise": node("RandomNoise", noise_seed=7),
    "guider": node("BasicGuider", model=["unet", 0], conditioning=["guid", 0]),
    "sampler": node("KSamplerSelect", sampler_name="euler"),
    "sigmas": node("BasicScheduler", model=["unet", 0], scheduler="simple", steps=3, denoise=1.0),
    "ks": node(
        "SamplerCustomAdvanced",
        noise=["noise", 0],
        guider=["guider", 0],
        sampler=["sampler", 0],
        sigmas=["sigmas", 0],
        latent_image=["lat", 0],
    ),
}
ONLY_IMAGES: Graph = {
    "a": node("EmptyImage", width=32, height=16, batch_size=2, color=0xFF8000),
    "out": node("SaveImage", images=["a", 0], filename_prefix="rec"),
}


def graph_through(class_type: str, **inputs: object) -> Graph:
    """Return a graph that passes two orange images of 32 x 16 through a node of this class, and saves them."""
    return {**changed(ONLY_IMAGES, out={"images": ["b", 0]}), "b": node(class_type, **inputs)}


def test_the_same_request_results_in_the_same_bytes(sim: Simulator) -> None:
    """Two simulators generate the same file for the same request, and another file for another seed."""
    first = Driver(sim.url).saved_files(TXT2IMG)
    with simulated() as (_, driver):
        assert driver.saved_files(TXT2IMG) == first
        assert driver.saved_files(changed(TXT2IMG, ks={"seed": 8})) != first


def test_the_same_graph_names_the_earlier_file(sim: Simulator, driver: Driver) -> None:
    """The same graph again samples nothing and names the earlier file, even if the file was deleted in between."""
    driver.saved_files(TXT2IMG)
    (sim.output_dir / "rec_00001_.png").unlink()

    assert driver.session.get(f"{driver.url}/view", params={"filename": "rec_00001_.png"}).status_code == 404
    assert driver.run(TXT2IMG)["outputs"]["out"]["images"][0]["filename"] == "rec_00001_.png"
    assert sim.sampled_steps == 3


def test_only_the_previous_prompt_is_cached(sim: Simulator, driver: Driver) -> None:
    """A graph that ran before another one is sampled again."""
    for graph in (TXT2IMG, ONLY_IMAGES, TXT2IMG):
        driver.run(graph)

    assert sim.sampled_steps == 6


def test_equal_nodes_run_once(driver: Driver) -> None:
    """Of two equal nodes only one is executed, and the result of at least one is reported."""
    graph = {**TXT2IMG, "twin": TXT2IMG["pos"]}
    with driver.listening() as listener:
        driver.queue(changed(graph, neg={"conditioning": ["twin", 0]}))
        frames = listener.frames_until("executing", node=None)

    nodes = [(frame["ws"]["type"], frame["ws"]["data"].get("node")) for frame in frames]
    assert (("executing", "pos") in nodes) != (("executing", "twin") in nodes)
    assert ("executed", "pos") in nodes or ("executed", "twin") in nodes


def test_a_file_that_changed_is_loaded_again(driver: Driver) -> None:
    """The cache key of LoadImage contains its file's content."""
    graph: Graph = {
        "img": node("LoadImage", image="x.png"),
        "out": node("SaveImage", images=["img", 0], filename_prefix="rec"),
    }
    names = []
    for color in ("red", "red", "blue"):
        driver.upload("x.png", png(Image.new("RGB", (8, 8), color)), overwrite="true")
        names.append(driver.run(graph)["outputs"]["out"]["images"][0]["filename"])

    assert names == ["rec_00001_.png", "rec_00001_.png", "rec_00002_.png"]


def test_a_saved_image_contains_its_graph(driver: Driver) -> None:
    """The text chunks contain the graph, with the hash of the loaded file, and the caller's extra_pnginfo."""
    driver.upload("x.png", png(Image.new("RGB", (64, 64))))
    graph = img2img("x.png")
    saved = driver.run(graph, extra_data={"extra_pnginfo": {"workflow": {"a": 1}}})["outputs"]["out"]["images"][0]
    text = decoded(driver.get("/view", **saved).content).info

    assert json.loads(text["workflow"]) == {"a": 1}
    graph_in_file = json.loads(text["prompt"])
    assert len(graph_in_file["img"].pop("is_changed")[0]) == 64
    assert graph_in_file == graph


@pytest.mark.parametrize(
    ("prefix", "name", "subfolder"),
    [
        ("rec", "rec_00004_.png", ""),
        ("new", "new_00001_.png", ""),
        ("jobs/abc/rec", "rec_00001_.png", "jobs/abc"),
        ("%width%x%height%", "64x64_00001_.png", ""),
        ("rec_%batch_num%", "rec_0_00001_.png", ""),
    ],
)
def test_saved_names_are_numbered(sim: Simulator, driver: Driver, prefix: str, name: str, subfolder: str) -> None:
    """The counter in a name is one more than the highest counter of that prefix in that folder."""
    for taken in ("rec_00003_.png", "rec_x_.png", "record_00009_.png"):
        (sim.output_dir / taken).touch()
    saved = driver.run(changed(TXT2IMG, out={"filename_prefix": prefix}))["outputs"]["out"]["images"]

    assert saved == [{"filename": name, "subfolder": subfolder, "type": "output"}]
    assert (sim.output_dir / subfolder / name).is_file()


def test_nothing_is_saved_outside(sim: Simulator, driver: Driver) -> None:
    """A prefix that leaves the folder is an execution error."""
    status = driver.run(changed(TXT2IMG, out={"filename_prefix": "../../evil"}))["status"]
    error = status["messages"][-1][1]

    assert error["exception_type"] == "Exception"
    assert list(error["current_inputs"]) == ["images", "filename_prefix", "prompt", "extra_pnginfo"]
    assert not list(sim.output_dir.parent.parent.glob("evil*"))


def test_previews_go_to_temp(sim: Simulator, driver: Driver) -> None:
    """PreviewImage saves a file of type temp in the temp folder."""
    graph = {**TXT2IMG, "out": node("PreviewImage", images=["dec", 0])}
    saved = driver.run(graph)["outputs"]["out"]["images"][0]

    assert saved["type"] == "temp"
    assert (sim.temp_dir / saved["filename"]).is_file()


def test_images_are_sent_over_the_websocket(driver: Driver) -> None:
    """A batch sends a PNG frame for each image, and saves nothing."""
    graph = to_websocket(changed(TXT2IMG, lat={"batch_size": 2}))
    with driver.listening() as listener:
        prompt_id = driver.queue(graph).json()["prompt_id"]
        frames = listener.frames_until("executing", node=None)
    files = [frame["file"] for frame in frames if "file" in frame]

    assert [decoded(file).size for file in files] == [(64, 64), (64, 64)]
    assert files[0] != files[1]
    assert driver.history(prompt_id)["outputs"] == {}


def test_progress_of_a_prompt_without_client_id_goes_to_all(driver: Driver) -> None:
    """Progress is sent to every socket; start, executing and the end are sent to none."""
    with driver.listening() as listener:
        listener.frame()
        prompt_id = driver.post("/prompt", {"prompt": TXT2IMG}).json()["prompt_id"]
        driver.history(prompt_id)
        listener.send({"type": "feature_flags"})
        frames = listener.frames_until("feature_flags")

    assert {frame["ws"]["type"] for frame in frames} == {"status", "progress_state", "progress", "feature_flags"}


def test_a_socket_whose_twin_was_closed_gets_no_frames(sim: Simulator, driver: Driver) -> None:
    """If one of two sockets with the same client id closes, the other gets no more frames, as in ComfyUI."""
    with driver.listening() as staying:
        with driver.listening() as leaving:
            leaving.frame()
        wait_until(lambda: sim.sockets == 1)
        driver.run(ONLY_IMAGES)
        staying.frame()
        staying.send({"type": "feature_flags"})

        assert staying.is_silent()


def test_the_custom_sampler_draws_the_same(driver: Driver) -> None:
    """KSampler and SamplerCustomAdvanced with the same settings generate the same image."""
    assert driver.saved_files(CUSTOM_SAMPLER)[0] != b""
    assert difference(saved_image(driver, CUSTOM_SAMPLER), saved_image(driver, TXT2IMG)) == 0


@pytest.mark.parametrize("graph", [img2img("x.png", denoise=0.0), changed(CUSTOM_SAMPLER, sigmas={"denoise": 0.0})])
def test_without_denoise_nothing_is_sampled(sim: Simulator, driver: Driver, graph: Graph) -> None:
    """Denoise 0 counts no step, and returns the input."""
    driver.upload("x.png", png(Image.new("RGB", (64, 64), "teal")))
    image = saved_image(driver, graph)

    assert sim.sampled_steps == 0
    assert len(image.getcolors() or ()) == 1


def test_denoise_mixes_image_and_drawing(driver: Driver) -> None:
    """A low denoise keeps the input image, a full one leaves only the drawing."""
    start = Image.new("RGB", (64, 64), "teal")
    driver.upload("x.png", png(start))
    distances = [difference(saved_image(driver, img2img("x.png", denoise=part)), start) for part in (0.01, 0.5, 1.0)]

    assert distances[0] < 2
    assert distances == sorted(distances)
    assert difference(saved_image(driver, img2img("x.png", denoise=1.0)), saved_image(driver, TXT2IMG)) == 0


def test_a_photo_is_turned_upright(driver: Driver) -> None:
    """LoadImage follows the EXIF orientation. `x.png [output]` loads a file of the output folder."""
    exif = Image.Exif()
    exif[0x0112] = 6
    driver.upload("x.png", png(Image.new("RGB", (32, 16), "teal"), exif=exif), type="output")
    graph: Graph = {
        "img": node("LoadImage", image="x.png [output]"),
        "out": node("SaveImage", images=["img", 0], filename_prefix="rec"),
    }

    assert saved_image(driver, graph).size == (16, 32)


@pytest.mark.parametrize("content", [b"no picture", png(Image.effect_noise((64, 64), 99))[:900]])
def test_an_unreadable_image_is_an_execution_error(driver: Driver, content: bytes) -> None:
    """Invalid or truncated images are detected when LoadImage runs."""
    driver.upload("x.png", content)

    assert driver.run(img2img("x.png"))["status"]["messages"][-1][1]["node_type"] == "LoadImage"


@pytest.mark.parametrize(
    ("node_id", "name", "literal"), [("pos", "clip", True), ("ks", "model", None), ("out", "images", {"a": 1})]
)
def test_a_literal_in_place_of_a_link_is_an_execution_error(
    driver: Driver, node_id: str, name: str, literal: object
) -> None:
    """/prompt accepts the literal, the node fails when it runs, and the next prompt succeeds."""
    graph = {**TXT2IMG, node_id: node(TXT2IMG[node_id]["class_type"], **{**TXT2IMG[node_id]["inputs"], name: literal})}
    error = driver.run(graph)["status"]["messages"][-1][1]

    assert (error["node_id"], error["exception_type"]) == (node_id, "AttributeError")
    assert driver.saved_files(TXT2IMG)


def test_a_deleted_image_is_an_execution_error(sim: Simulator, driver: Driver) -> None:
    """A file that was deleted while the prompt was queued is not found when it runs."""
    driver.upload("x.png", png(Image.new("RGB", (64, 64))))
    sim.faults.hang_sampling()
    driver.queue(TXT2IMG, prompt_id=FIRST)
    driver.queue(img2img("x.png"), prompt_id=SECOND)
    wait_until(lambda: sim.hanging_step)
    (sim.input_dir / "x.png").unlink()
    sim.faults.release()

    assert driver.history(SECOND)["status"]["messages"][-1][1]["exception_type"] == "FileNotFoundError"


@pytest.mark.parametrize(
    ("graph", "size"),
    [
        (ONLY_IMAGES, (32, 16)),
        (
            graph_through("ImageScale", image=["a", 0], upscale_method="lanczos", width=8, height=0, crop="disabled"),
            (8, 4),
        ),
        (
            graph_through("ImageScale", image=["a", 0], upscale_method="area", width=0, height=8, crop="disabled"),
            (16, 8),
        ),
        (
            graph_through("ImageScale", image=["a", 0], upscale_method="area", width=0, height=0, crop="disabled"),
            (32, 16),
        ),
        (graph_through("ImageScale", image=["a", 0], upscale_method="area", width=9, height=9, crop="center"), (9, 9)),
    ],
)
def test_images_are_scaled_to_the_requested_size(driver: Driver, graph: Graph, size: tuple[int, int]) -> None:
    """Scaling keeps the ratio if one side is 0, and orange stays orange."""
    image = saved_image(driver, graph)

    assert image.size == size
    assert image.getpixel((0, 0)) == (255, 128, 0)


def test_a_lora_is_drawn(driver: Driver) -> None:
    """A graph with a LoRA generates another image than the graph without it."""
    large = changed(TXT2IMG, lat={"width": 512, "height": 512})
    lora = node("LoraLoaderModelOnly", model=["unet", 0], lora_name="game-ui.safetensors", strength_model=1.0)

    assert difference(
        saved_image(driver, {**changed(large, ks={"model": ["lora", 0]}), "lora": lora}), saved_image(driver, large)
    )


def test_a_checkpoint_is_model_text_encoder_and_vae() -> None:
    """CheckpointLoaderSimple outputs a model, a text encoder and a VAE. EmptyLatentImage rounds sizes down to 8."""
    with simulated(models={"checkpoints": ("all.safetensors",)}) as (_, driver):
        one = node("CheckpointLoaderSimple", ckpt_name="all.safetensors")
        graph = {**changed(TXT2IMG, unet=None, clip=None, vae=None), "one": one}
        linked = changed(
            graph, pos={"clip": ["one", 1]}, ks={"model": ["one", 0]}, dec={"vae": ["one", 2]}, lat={"width": 72}
        )
        assert saved_image(driver, linked).size == (72, 64)
        plain = {**linked, "lat": node("EmptyLatentImage", width=70, height=64, batch_size=1)}
        assert saved_image(driver, plain).size == (64, 64)
