"""Pairs of frames: clips of all kinds read back, bad ones refused, splits, and crops around what moves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from tiny_motion import moving_square, tiny_motion, write_clip

from scenediff.datasets.rooms.assets import split_of
from scenediff.datasets.video import (
    MANY_CLIPS,
    TRAIN_SHARE,
    Clip,
    PairConfig,
    Pairs,
    VideoError,
    changed_pixels,
    load_clips,
    make_pairs,
    read_clip,
    save_cache,
    split_clips,
)
from scenediff.renderers.motion import MotionField
from scenediff.tools.evaluate_motion import VideoTrials, evaluate_video, held_out_pairs, squared_grey


def ffmpeg(*arguments: object) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, arguments)]
    subprocess.run(command, check=True)


def numbered_clip(name: str, count: int = 20) -> Clip:
    """Every pixel of frame n is n."""
    frames = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    return Clip(name, frames, 10.0)


def moving_clip(count: int = 12, size: tuple[int, int] = (48, 64), seed: int = 0) -> Clip:
    return Clip(f"clip_{seed}.avi", moving_square(count, size, seed=seed), 10.0)


# --- reading -------------------------------------------------------------------------------------


def test_a_lossless_clip_is_read_back(tmp_path: Path) -> None:
    frames = moving_square()
    clip = read_clip(write_clip(tmp_path / "a.avi", frames, fps=12), 48)
    assert clip.name == "a.avi"
    assert clip.fps == 12
    assert np.array_equal(clip.frames, frames)


def test_compressed_clips_are_read_in_the_right_colours_and_order(tmp_path: Path) -> None:
    frames = moving_square()
    clip = read_clip(write_clip(tmp_path / "a.mp4", frames), 48)
    assert clip.frames.shape == frames.shape
    read = clip.frames.astype(float)
    errors = np.abs(read - frames).mean((1, 2, 3))
    assert errors.max() < 1.5  # grey levels; chroma has half the resolution
    assert (np.abs(read[:-1] - frames[1:]).mean((1, 2, 3)) > 2 * errors[:-1]).all()
    assert (np.abs(read[..., ::-1] - frames).mean((1, 2, 3)) > 2 * errors).all()


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((48, 64), (32, 43)), ((64, 48), (43, 32)), ((47, 61), (32, 42)), ((33, 33), (32, 32)),
        ((20, 30), (32, 48)),
    ],
)
def test_the_short_side_is_as_asked(tmp_path: Path, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Also of odd and of smaller frames; the other side in proportion."""
    frames = np.full((3, *size, 3), (10, 120, 240), np.uint8)
    clip = read_clip(write_clip(tmp_path / "a.avi", frames), 32)
    assert clip.frames.shape == (3, *wanted, 3)
    assert np.abs(clip.frames.astype(int) - frames[0, 0, 0]).max() <= 1


def test_rotated_clips_are_upright(tmp_path: Path) -> None:
    """As phones store them: pixels lie on their side, the metadata say so."""
    frames = np.zeros((4, 32, 48, 3), np.uint8)
    frames[:, :, :24] = 255  # the left half
    write_clip(tmp_path / "lying.mp4", frames)
    ffmpeg("-display_rotation", "90", "-i", tmp_path / "lying.mp4", "-c", "copy", tmp_path / "up.mp4")
    clip = read_clip(tmp_path / "up.mp4", 32)
    assert clip.frames.shape == (4, 48, 32, 3)
    halves = clip.frames[:, :20].mean(), clip.frames[:, 28:].mean()
    assert sorted(halves) == pytest.approx([0, 255], abs=5)  # above and below, no longer left and right
    assert halves[1] > halves[0]  # a quarter turn to the left brings the left half down


def test_frames_that_change_size_take_the_first_ones(tmp_path: Path) -> None:
    """Two streams of motion JPEG one after the other: a player would see the frame shrink."""
    parts = []
    for name, size in (("large", (64, 96)), ("small", (32, 40))):
        write_clip(tmp_path / f"{name}.avi", np.full((3, *size, 3), 200, np.uint8))
        part = tmp_path / f"{name}.mjpeg"
        ffmpeg("-i", tmp_path / f"{name}.avi", "-c:v", "mjpeg", "-pix_fmt", "yuvj420p", part)
        parts.append(part.read_bytes())
    (tmp_path / "both.mjpeg").write_bytes(b"".join(parts))
    clip = read_clip(tmp_path / "both.mjpeg", 32)
    assert clip.frames.shape == (6, 32, 48, 3)
    assert np.abs(clip.frames.astype(int) - 200).max() <= 3


def test_transparent_and_grey_clips(tmp_path: Path) -> None:
    write_clip(tmp_path / "rgb.avi", np.full((3, 32, 40, 3), 130, np.uint8))
    for pixels, codec in (("gray16le", "ffv1"), ("yuva420p", "ffv1"), ("gray", "ffv1")):
        ffmpeg("-i", tmp_path / "rgb.avi", "-c:v", codec, "-pix_fmt", pixels, tmp_path / "other.mkv")
        clip = read_clip(tmp_path / "other.mkv", 32)
        assert clip.frames.shape == (3, 32, 40, 3)
        assert np.abs(clip.frames.astype(int) - 130).max() <= 2


def test_folders_are_searched_in_order(tmp_path: Path) -> None:
    for name in ("b/inner.mkv", "a.AVI", "c.mp4"):
        lower = write_clip(tmp_path / name.lower(), moving_square(3))
        lower.rename(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no clip")
    (tmp_path / "folder.mp4").mkdir()
    assert [clip.name for clip in load_clips(tmp_path, 48)] == ["a.AVI", "b/inner.mkv", "c.mp4"]
    assert [clip.name for clip in load_clips(tmp_path / "b", 48)] == ["inner.mkv"]


# --- what can't be used --------------------------------------------------------------------------


def refused(path: Path, *words: str) -> None:
    with pytest.raises(VideoError) as caught:
        load_clips(path, 48)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_bad_clips_are_refused_by_name(tmp_path: Path) -> None:
    refused(write_clip(tmp_path / "one.avi", moving_square(1)), "1 frame")
    for name, data in (("text.mp4", b"no video at all " * 99), ("empty.avi", b"")):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, "no video that ffmpeg can read")
    whole = write_clip(tmp_path / "whole.mp4", moving_square()).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:300])
    refused(tmp_path / "cut.mp4", "no video that ffmpeg can read")
    refused(tmp_path / "absent.mp4", "does not exist")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "photo.jpg").touch()
    refused(tmp_path / "none", "has no videos", ".mp4")


def test_a_bad_clip_in_a_folder_is_named(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.avi", moving_square(3))
    (tmp_path / "b.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"b\.mp4 is no video"):
        load_clips(tmp_path, 48)


# --- the cache -----------------------------------------------------------------------------------


def test_caches_are_exact(tmp_path: Path) -> None:
    """Also where grey levels jump from one end to the other: differences are taken modulo 256."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 32, 41, 3)).astype(np.uint8)
    clips = [Clip("noise/ü.mp4", noise, 29.97), moving_clip(7, (32, 40))]
    save_cache(clips, tmp_path / "clips.npz")
    again = load_clips(tmp_path / "clips.npz", 32)
    for clip, read in zip(clips, again, strict=True):
        assert (read.name, read.fps) == (clip.name, clip.fps)
        assert read.frames.dtype == np.uint8
        assert np.array_equal(read.frames, clip.frames)


def test_a_cache_of_a_resting_camera_is_small(tmp_path: Path) -> None:
    background = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    save_cache([Clip("a.mp4", background.repeat(20, 0), 10.0)], tmp_path / "clips.npz")
    assert (tmp_path / "clips.npz").stat().st_size < 2 * background.nbytes


def test_bad_caches(tmp_path: Path) -> None:
    path = tmp_path / "clips.npz"
    save_cache([moving_clip()], path)
    refused_size = "made for a short side of [48] pixels, not 64"
    with pytest.raises(VideoError) as caught:
        load_clips(path, 64)
    assert refused_size in str(caught.value)
    whole = path.read_bytes()
    damaged = [
        whole[:start] + bytes([value]) * 40 + whole[start + 40 :]
        for start in range(200, len(whole) - 400, 211) for value in (0, 255)
    ]  # fmt: skip
    for data in (b"", b"no archive", whole[: len(whole) // 2], *damaged):
        path.write_bytes(data)
        refused(path, "no cache of clips")
    np.savez(path, other=np.zeros(3))
    refused(path, "no cache of clips")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))  # one array, no archive
    refused(path, "no cache of clips")


# --- splits --------------------------------------------------------------------------------------


def frames_of(clips: list[Clip]) -> dict[str, list[int]]:
    return {clip.name: clip.frames[:, 0, 0, 0].tolist() for clip in clips}


def test_parts_share_no_frame() -> None:
    clips = [numbered_clip("a.mp4", 20), numbered_clip("b.mp4", 33)]
    train, test = (frames_of(split_clips(clips, split)) for split in ("train", "test"))
    assert train == {"a.mp4": list(range(16)), "b.mp4": list(range(26))}
    assert test == {"a.mp4": list(range(16, 20)), "b.mp4": list(range(26, 33))}
    assert TRAIN_SHARE == 0.8


def test_many_clips_are_held_out_as_a_whole_too() -> None:
    names = [f"clip_{index}.mp4" for index in range(40)]
    held_out = {name for name in names if split_of(name) == "heldout"}
    assert 1 <= len(held_out) <= 14  # about 15 % of 40
    clips = [numbered_clip(name) for name in names]
    train, test = (frames_of(split_clips(clips, split)) for split in ("train", "test"))
    assert set(train) == set(names) - held_out
    assert set(test) == set(names)
    for name in names:
        assert train.get(name, []) + test[name] == list(range(20))
        assert (len(test[name]) == 20) == (name in held_out)


def test_few_clips_are_split_by_time_alone() -> None:
    held_out = [f"clip_{index}.mp4" for index in range(99) if split_of(f"clip_{index}.mp4") == "heldout"]
    few = [numbered_clip(name) for name in held_out[: MANY_CLIPS - 1]]
    assert len(split_clips(few, "train")) == len(few) == MANY_CLIPS - 1


def test_clips_too_short_for_a_part_are_left_out() -> None:
    clips = [numbered_clip("short.mp4", 4), numbered_clip("long.mp4", 20)]
    assert set(frames_of(split_clips(clips, "test"))) == {"long.mp4"}
    with pytest.raises(VideoError, match="long enough to have frames to test on"):
        split_clips(clips[:1], "test")


# --- pairs ---------------------------------------------------------------------------------------


def test_changed_pixels_differ_in_any_channel_by_more_than_the_threshold() -> None:
    first = np.full((1, 6, 3), 100, np.uint8)
    second = first.copy()
    second[0, :, 1] = [100, 124, 125, 76, 75, 255]
    assert changed_pixels(first, second, 24)[0].tolist() == [False, False, True, False, True, True]


def spots_of(pairs: Pairs) -> list[list[int]]:
    return pairs.spots.tolist()


def test_spots_are_places_that_changed() -> None:
    clips = [moving_clip(seed=1), moving_clip(9, (40, 50), seed=2)]
    config = PairConfig(gaps=(1, 3), spots=6)
    pairs = make_pairs(clips, config, 32)
    found = set()
    for clip, frame, gap, row, column in spots_of(pairs):
        changed = changed_pixels(clips[clip].frames[frame], clips[clip].frames[frame + gap], config.threshold)
        assert changed[row, column]
        found.add((clip, frame, gap))
    assert found == {
        (index, frame, gap) for index, clip in enumerate(clips) for gap in (1, 3)
        for frame in range(len(clip.frames) - gap)
    }  # fmt: skip
    assert len(pairs.spots) == 6 * len(found)
    assert torch.equal(make_pairs(clips, config, 32).spots, pairs.spots)


def test_static_pairs_and_cuts_are_rejected() -> None:
    """A square that rests for a while; then a cut to an inverted picture."""
    frames = moving_square(12)
    frames[4:8] = frames[4]
    frames[10:] = 255 - frames[10:]
    pairs = make_pairs([Clip("a.avi", frames, 10.0)], PairConfig(gaps=(1,)), 32)
    assert set(pairs.spots[:, 1].tolist()) == {0, 1, 2, 3, 7, 8, 10}
    still = frames[:1].repeat(6, 0)
    for bad in (still, np.concatenate([still[:1], 255 - still[:1]])):
        with pytest.raises(VideoError, match="nothing moves in the clips, or everything does"):
            make_pairs([Clip("a.avi", bad, 10.0)], PairConfig(gaps=(1,)), 32)


def test_noise_below_the_threshold_is_no_motion() -> None:
    rng = np.random.default_rng(0)
    noise = (100 + rng.integers(0, 20, (6, 48, 64, 3))).astype(np.uint8)
    with pytest.raises(VideoError, match="nothing moves"):
        make_pairs([Clip("a.avi", noise, 10.0)], PairConfig(), 32)
    assert len(make_pairs([Clip("a.avi", noise, 10.0)], PairConfig(threshold=18, most=1.0), 32).spots) > 0


def test_frames_smaller_than_the_crops() -> None:
    with pytest.raises(VideoError, match=r"clip_0\.avi: frames of 64x48 are smaller than crops of 64"):
        make_pairs([moving_clip()], PairConfig(), 64)


def test_crops_are_the_frames_pixels_around_a_change() -> None:
    """Frames of random colours: where a crop comes from can be told from it."""
    rng = np.random.default_rng(0)
    clips = []
    for index, size in enumerate(((32, 45), (50, 33))):
        background = rng.integers(0, 120, (1, *size, 3)).astype(np.uint8)
        frames = background.repeat(6, 0)
        for n in range(6):
            frames[n, 10:16, 4 * n : 4 * n + 6] = 255
        clips.append(Clip(f"{index}.avi", frames, 10.0))
    config = PairConfig(gaps=(1, 2))
    pairs = make_pairs(clips, config, 24)
    context, target = pairs.draw(40, 24, torch.Generator().manual_seed(0), flip=False)
    assert context.shape == target.shape == (40, 3, 24, 24)
    seen = set()
    for one, other in zip(as_pixels(context), as_pixels(target), strict=True):
        places = [
            (index, frame, gap, top, left)
            for index, clip in enumerate(clips) for gap in config.gaps for frame in range(6 - gap)
            for top in range(clip.frames.shape[1] - 23) for left in range(clip.frames.shape[2] - 23)
            if clip.frames[frame, top + 23, left, 0] == one[23, 0, 0]  # quick
            and np.array_equal(clip.frames[frame, top : top + 24, left : left + 24], one)
            and np.array_equal(clip.frames[frame + gap, top : top + 24, left : left + 24], other)
        ]  # fmt: skip
        assert places
        seen.add(places[0])
        assert changed_pixels(one, other, config.threshold).any()
    assert {place[0] for place in seen} == {0, 1}
    assert len(seen) > 25


def as_pixels(images: torch.Tensor) -> np.ndarray:
    return ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def test_crops_of_the_whole_frame() -> None:
    clip = moving_clip(size=(48, 48))
    pairs = make_pairs([clip], PairConfig(), 48)
    context, _ = pairs.draw(8, 48, torch.Generator().manual_seed(0), flip=False)
    for image in as_pixels(context):
        assert any(np.array_equal(image, frame) for frame in clip.frames)


def test_flips_mirror_both() -> None:
    pairs = make_pairs([moving_clip()], PairConfig(), 32)
    plain = pairs.draw(64, 32, torch.Generator().manual_seed(3), flip=False)
    mirrored = pairs.draw(64, 32, torch.Generator().manual_seed(3))
    turned = 0
    for index in range(64):
        same = [torch.equal(new[index], old[index]) for new, old in zip(mirrored, plain, strict=True)]
        turned_over = zip(mirrored, plain, strict=True)
        flipped = [torch.equal(new[index], old[index].flip(-1)) for new, old in turned_over]
        assert all(same) or all(flipped)
        turned += not all(same)
    assert 16 <= turned <= 48  # binomial: 32 +- 4


def test_draws_depend_on_the_generator_alone() -> None:
    pairs = make_pairs([moving_clip()], PairConfig(), 32)
    one, again, other = (pairs.draw(8, 32, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(*both) for both in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])
    assert one[0].min() >= -1
    assert one[0].max() <= 1
    assert torch.equal(pairs.to("cpu").draw(8, 32, torch.Generator().manual_seed(1))[0], one[0])


# --- the evaluation on held-out video ------------------------------------------------------------


class Oracle:
    """Stands for a model one of whose samples is the true flow; the others and the mean rest."""

    def __init__(self, flow: torch.Tensor) -> None:
        self.device, self.defaults = torch.device("cpu"), tiny_motion().defaults
        self.flow, self.asked = flow, 0

    def field(self, flow: torch.Tensor) -> MotionField:
        return MotionField(flow, -flow, torch.ones_like(flow[:, :1]), torch.zeros_like(flow[:, :1]))

    def sample(self, photos: torch.Tensor, seeds: list[int], *, steps: int | None) -> tuple:
        assert len(set(seeds)) == len(photos)
        self.asked += 1
        return self.field(self.flow if self.asked == 2 else 0 * self.flow), photos

    def deterministic(self, photos: torch.Tensor) -> tuple:
        return self.field(0 * self.flow), photos * 0


def shifted_pairs(size: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Textured squares that moved by (4, -2) over black, the targets, and the flows that undo it."""
    texture = torch.randint(128, 256, (3, 3, 12, 12), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    context, target = -torch.ones(2, 3, 3, size, size)
    context[:, :, 10:22, 8:20], target[:, :, 8:20, 12:24] = texture, texture
    flow = torch.zeros(3, 2, size, size)
    flow[:, :, 8:20, 12:24] = torch.tensor([-4.0, 2.0]).view(2, 1, 1)
    flow[:, :, 20:22, 8:20] = torch.tensor([-8.0, 2.0]).view(2, 1, 1)  # what was hidden is black elsewhere
    flow[:, :, 10:20, 8:12] = torch.tensor([-8.0, 0.0]).view(2, 1, 1)
    return context, target, flow


def test_the_true_flow_has_no_error() -> None:
    context, target, flow = shifted_pairs()
    trials = VideoTrials(samples=3, pairs=3, size=32)
    figures = evaluate_video(Oracle(flow), context, target, trials)  # type: ignore[arg-type]
    errors = figures["rms_moving"]
    assert errors["best_of_samples"] < 0.01
    assert errors["identity"] == errors["deterministic"] > 50
    # two of three samples rest
    assert errors["one_sample"] == pytest.approx((2 / 3) ** 0.5 * errors["identity"], abs=0.01)
    moved = ((target - context).abs().amax(1) * 127.5 > 24).float().mean()
    assert figures["moving_pixels"] == pytest.approx(float(moved), abs=1e-4)
    assert figures["still_pixels_moving_less_than_0.25_px"] == 1
    assert figures["still_pixels_deterministic"] == 1


def test_moving_backgrounds_are_found_out() -> None:
    context, target, flow = shifted_pairs()
    oracle = Oracle(torch.full_like(flow, 1.0))
    figures = evaluate_video(oracle, context, target, VideoTrials(samples=2, pairs=3, size=32))  # type: ignore[arg-type]
    assert figures["still_pixels_moving_less_than_0.25_px"] == 0.5  # of one sample of two
    assert figures["still_pixels_deterministic"] == 1


def test_errors_are_mean_squares_over_the_mask_in_grey_levels() -> None:
    truth, image = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    image[0, :, :2], image[1, 0] = 10 / 127.5, 6 / 127.5
    where = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    where[:, :, 1:3] = True
    assert squared_grey(image, truth, where).tolist() == pytest.approx([50, 12], rel=1e-5)


def test_held_out_pairs_are_the_last_fifths(tmp_path: Path) -> None:
    """The first frames of a clip are red, the last fifth blue."""
    frames = moving_square(30, (128, 140), side=24, step=5) // 2
    frames[:24, ..., 0] += 100
    frames[24:, ..., 2] += 100
    write_clip(tmp_path / "a.avi", frames)
    trials = VideoTrials(pairs=5, size=32)
    context, target = held_out_pairs(tmp_path, trials)
    assert context.shape == target.shape == (5, 3, 32, 32)
    for images in (context, target):
        assert (images[:, 2].mean((1, 2)) > images[:, 0].mean((1, 2))).all()
    assert ((context - target).abs().amax((1, 2, 3)) > 0.1).all()
    assert torch.equal(held_out_pairs(tmp_path, trials)[0], context)
