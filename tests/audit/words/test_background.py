"""Ordinary words and prompts."""

from surgery.audit.words.background import background_phrases, scene_prompts


def test_there_are_enough_different_nouns_for_a_median() -> None:
    nouns = background_phrases()
    assert len(nouns) >= 400
    assert len(set(nouns)) == len(nouns)


def test_scenes_are_always_the_same_and_name_every_noun() -> None:
    scenes = list(scene_prompts())
    assert scenes == list(scene_prompts())
    assert len(scenes) == 2 * len(background_phrases())
    for noun in ("acorn", "zebra"):
        assert any(noun in scene.split() for scene in scenes)
    assert not any("{" in scene for scene in scenes)
