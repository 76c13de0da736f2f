"""What --input stands for, in folders as people have them."""

from pathlib import Path

import pytest
from PIL import Image

from deeplab_jax.data.inputs import find_images
from deeplab_jax.errors import DataError


def photograph(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(path)
    return path


@pytest.fixture
def videos(tmp_path):
    for name in ("b/10.jpg", "b/9.jpg", "a/1.PNG", "a/deep er/straße 1.jpg", "top.jpg"):
        photograph(tmp_path / "videos" / name)
    (tmp_path / "videos" / "a" / "notes.txt").write_text("no image")
    photograph(tmp_path / "videos" / "a" / "._1.jpg")  # what macOS leaves on other disks
    photograph(tmp_path / "videos" / ".thumbnails" / "1.jpg")
    return tmp_path / "videos"


def places(found) -> list[str]:
    assert all(path.is_file() for path in found)
    return [str(place) for place in found.values()]


def test_a_folder_is_all_the_images_below_it_in_natural_order(videos):
    found = find_images(videos)
    assert places(found) == ["a/1.PNG", "a/deep er/straße 1.jpg", "b/9.jpg", "b/10.jpg", "top.jpg"]
    assert next(iter(found)) == videos / "a" / "1.PNG"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("top.jpg", ["top.jpg"]),
        ("b/9.jpg", ["9.jpg"]),
        ("b/*.jpg", ["9.jpg", "10.jpg"]),
        ("b/[0-9].jpg", ["9.jpg"]),
        ("*/*.jpg", ["b/9.jpg", "b/10.jpg"]),
        ("**/*.jpg", ["a/deep er/straße 1.jpg", "b/9.jpg", "b/10.jpg", "top.jpg"]),
        ("b/**", ["9.jpg", "10.jpg"]),
        ("b**/9*", ["b/9.jpg"]),
        ("a/no*", ["notes.txt"]),  # a glob takes what it names
    ],
)
def test_files_and_globs(videos, pattern, expected):
    assert places(find_images(f"{videos}/{pattern}")) == expected


def test_globs_from_here(videos, monkeypatch):
    monkeypatch.chdir(videos)
    assert places(find_images("*.jpg")) == ["top.jpg"]
    assert places(find_images("../vid*/b/*.jpg")) == ["videos/b/9.jpg", "videos/b/10.jpg"]
    assert find_images(".").keys() == find_images("**/*.[jP][pN][gG]").keys()


def test_a_name_with_wildcards_in_it_is_a_name(tmp_path):
    folder = photograph(tmp_path / "take[1]" / "frame*.jpg").parent
    photograph(folder / "frame2.jpg")
    assert places(find_images(folder / "frame*.jpg")) == ["frame*.jpg"]
    assert len(find_images(folder)) == 2


def test_links_that_go_in_circles(videos):
    for folder in ("a", "b"):
        (videos / folder / "round").symlink_to(videos)
        (videos / folder / "again").symlink_to(videos / folder)
    (videos / "self.jpg").symlink_to(videos / "self.jpg")
    (videos / "linked.jpg").symlink_to(videos / "top.jpg")
    assert len(find_images(videos)) == 6
    assert len(find_images(f"{videos}/**/*.jpg")) == 5


def test_results_inside_the_folder_are_no_input(videos):
    before = find_images(videos)
    photograph(videos / "predictions" / "overlays" / "1.png")
    assert find_images(videos, without=videos / "predictions") == before
    assert len(find_images(f"{videos}/**/*.*", without=videos / "predictions")) == 6
    # A folder of results that is itself asked for.
    assert len(find_images(videos / "predictions", without=videos / "predictions")) == 1


@pytest.mark.parametrize("path", ["nowhere", "nowhere/*.jpg", "videos/*.gif", "videos/.thumb*/*"])
def test_nothing_found(videos, path):
    with pytest.raises(DataError, match="no image found; give a file, a folder"):
        find_images(videos.parent / path)
