"""The oracle must be able to say no: each violation it knows, and what is none."""

from p2psync.ports import FsCapabilities, Hint, Kind
from p2psync.testing import Oracle, SimDevice, SimWorld, User, run_deterministic
from p2psync.testing.oracle import Allowance
from p2psync.testing.snapshot import Shown, content_id


def shows(**files: bytes) -> dict[bytes, Shown]:
    return {name.encode(): Shown(Kind.FILE, content_id(data)) for name, data in files.items()}


def wrote(oracle: Oracle, device: str, data: bytes, before: bytes | None = None, *, durable: bool = True) -> None:
    oracle.wrote(device, b"f", content_id(data), None if before is None else content_id(before), durable=durable)


def verdict(oracle: Oracle, trees: dict[str, dict[bytes, Shown]], history: set[bytes] | None = None) -> list[str]:
    return [violation.invariant for violation in oracle.check(trees, {"a": history or set()})]


def test_concurrent_writes_must_both_survive() -> None:
    oracle = Oracle()
    wrote(oracle, "a", b"one")
    wrote(oracle, "b", b"two")
    assert verdict(oracle, {"a": shows(f=b"one"), "b": shows(f=b"one")}) == ["I2"]
    assert verdict(oracle, {"a": shows(f=b"one", copy=b"two"), "b": shows(f=b"one", copy=b"two")}) == []
    assert verdict(oracle, {"a": shows(f=b"one"), "b": shows(f=b"one")}, {content_id(b"two")}) == []


def test_a_write_over_what_was_visible_supersedes_it_and_a_delete_too() -> None:
    oracle = Oracle()
    wrote(oracle, "a", b"one")
    wrote(oracle, "b", b"two", before=b"one")
    assert verdict(oracle, {"a": shows(f=b"two")}) == []
    oracle.deleted("b", b"f", content_id(b"two"))
    assert verdict(oracle, {"a": {}}) == []
    wrote(oracle, "a", b"two")
    assert verdict(oracle, {"a": {}}) == ["I2"], "written again after it was deleted"


def test_trees_must_agree_in_everything_a_person_sees() -> None:
    oracle = Oracle()
    wrote(oracle, "a", b"one")
    plain = Shown(Kind.FILE, content_id(b"one"))
    for other in (
        Shown(Kind.FILE, content_id(b"one"), executable=True),
        Shown(Kind.DIRECTORY),
        Shown(Kind.SYMLINK, target=b"x"),
        None,
    ):
        trees = {"a": {b"f": plain}, "b": {} if other is None else {b"f": other}}
        assert verdict(oracle, trees) == ["I1"]


def test_bytes_that_nobody_wrote_are_noticed() -> None:
    oracle = Oracle()
    wrote(oracle, "a", b"one")
    assert verdict(oracle, {"a": shows(f=b"one", g=b"on")}) == ["I8"]
    oracle.existed([content_id(b"on")])
    assert verdict(oracle, {"a": shows(f=b"one", g=b"on")}) == []


def test_a_power_cut_excuses_only_what_was_not_synced_and_was_really_lost() -> None:
    for durable, expected in ((False, []), (True, ["I2", "I8"])):
        oracle = Oracle()
        wrote(oracle, "a", b"one", durable=durable)
        oracle.crashed("a", shows(f=b"one"), shows(f=b""))
        assert verdict(oracle, {"a": shows(f=b"")}) == expected
    oracle = Oracle()
    wrote(oracle, "a", b"one", durable=False)
    oracle.crashed("a", shows(f=b"one"), shows(f=b"one"))
    assert verdict(oracle, {"a": {}}) == ["I2"]


def test_a_file_goes_with_its_directory_also_when_an_older_one_is_back_in_its_place() -> None:
    for back, lost in ((1, True), (2, False)):
        stood = {b"d": Shown(Kind.DIRECTORY, ino=2), b"d/f": Shown(Kind.FILE, content_id(b"one"))}
        older = {b"d": Shown(Kind.DIRECTORY, ino=back), b"d/f": Shown(Kind.FILE, content_id(b"older"))}
        for after in ({b"d": older[b"d"]}, older):
            oracle = Oracle()
            oracle.wrote("a", b"d/f", content_id(b"one"), None, durable=True)
            oracle.crashed("a", stood, after)
            assert (oracle.losses({}, {}) == []) is lost


def test_where_it_was_calm_history_is_enough_only_for_what_a_user_had_twice() -> None:
    """Of two files with one content one was renamed over the other: for nodes, the one left is what it was before."""
    oracle, kept = Oracle(), {"a": {content_id(b"one")}}
    wrote(oracle, "a", b"one")
    assert oracle.losses({}, kept, calm=True)
    assert not oracle.losses({}, kept)
    oracle.joined(content_id(b"one"))
    assert not oracle.losses({}, kept, calm=True)
    assert oracle.losses({}, {}, calm=True)


def test_an_editors_torn_scratch_file_after_a_power_cut_is_nobodys_fault() -> None:
    oracle = Oracle()
    torn = {b"d/.save~": Shown(Kind.FILE, content_id(b"to"))}
    assert verdict(oracle, {"a": torn}) == ["I8"]
    oracle.crashed("a", {}, torn)
    assert verdict(oracle, {"a": torn}) == []


def test_leftovers() -> None:
    assert Oracle.leftovers({"a": []}) == []
    assert [v.invariant for v in Oracle.leftovers({"a": [b".p2psync/tmp/x"]})] == ["I8"]


def on_a_device(story: object) -> None:
    async def main() -> None:
        device = SimWorld(1).device("a")
        device.disk.make_directories(b"/f")
        story(device)  # type: ignore[operator]

    run_deterministic(1, main)


def test_users_tell_the_oracle_what_they_did() -> None:
    def story(device: SimDevice) -> None:
        oracle = Oracle()
        user: User = device.user(b"/f", oracle)
        user.write(b"f", b"one")
        user.append(b"f", b"+")
        user.edit(b"f", 0, b"O")
        user.atomic_save(b"f", b"two")
        user.mkdir(b"d")
        user.rename(b"f", b"d/f")
        assert (user.read(b"d/f"), user.names()) == (b"two", [b"d"])
        assert [v.invariant for v in oracle.check({"a": shows(f=b"two")}, {})] == []
        assert [v.invariant for v in oracle.check({"a": {}}, {})] == ["I2"]
        file = user.open_write(b"g")
        file.pwrite(b"growing", 0)
        file.close()
        user.finished(b"g")
        user.rename(b"g", b"d/f")
        assert [v.invariant for v in oracle.check({"a": shows(f=b"growing")}, {})] == []
        user.delete_tree(b"d")
        assert oracle.check({"a": {}}, {}) == []

    on_a_device(story)


def test_watchers_hear_what_happens_below_their_root_and_lose_what_they_are_told_to() -> None:
    def story(device: SimDevice) -> None:
        device.disk.make_directories(b"/other")
        hints: list[Hint] = []
        watch = device.watcher.watch(b"/f", hints.append)
        user = device.user(b"/f")
        user.mkdir(b"d")
        user.write(b"d/a", b"1")
        device.user(b"/other").write(b"x", b"1")
        assert hints[0] == Hint(b"d", settled=True)
        assert hints[-1] == Hint(b"d/a", settled=True)
        assert {hint.path for hint in hints} == {b"d", b"d/a"}
        hints.clear()
        device.watcher.loss = 1.0
        user.write(b"b", b"1")
        assert hints == []
        device.watcher.loss, device.watcher.overflow = 0.0, 1.0
        user.delete(b"b")
        assert hints == [Hint(None)]
        watch.close()
        user.write(b"b", b"1")
        assert len(hints) == 1

    on_a_device(story)


def test_clocks_lie_and_randomness_repeats() -> None:
    async def main() -> tuple[int, bytes]:
        device = SimWorld(5).device("a")
        first = device.clock.wall_ns()
        device.clock.jump(-10)
        assert first - device.clock.wall_ns() == 10 * 10**9
        assert device.clock.monotonic() == 0
        tokens = [device.world().rng.token(8), device.world().rng.token(8)]
        assert tokens[0] != tokens[1], "a restarted node must not repeat itself"
        return first, tokens[0]

    assert run_deterministic(1, main) == run_deterministic(2, main)


def test_what_a_disk_cannot_show_is_excused_and_must_be_said() -> None:
    link, file, other = Shown(Kind.SYMLINK, target=b"x"), Shown(Kind.FILE, b"1"), Shown(Kind.FILE, b"2")
    directory = Shown(Kind.DIRECTORY)
    composed, decomposed = "\u00e9".encode(), "e\u0301".encode()
    poor = Allowance(FsCapabilities(case_insensitive=True, symlinks=False))
    for ours, theirs, excused in (
        ({b"a": link}, {}, True),
        ({b"a": link}, {b"a": file}, True),
        ({b"a": file}, {b"a": other}, False),
        ({b"a": file, b"A": file}, {b"A": file}, True),
        ({b"a": file, b"A": file}, {}, False),
        ({b"a": file}, {b"a": file, b"A": file}, False),
        ({composed: file, decomposed: file}, {composed: file}, False),
        ({b"d": directory}, {}, False),
        ({b"d": directory, b"d/e": directory, b"d/e/f": file}, {}, False),
    ):
        trees, allowed = {"a": ours, "b": theirs}, {"b": poor}
        assert bool(Oracle.convergence(trees, allowed)) is not excused, (ours, theirs)
        assert bool(Oracle.silence(trees, allowed, {"b": []})) is excused
        assert Oracle.silence(trees, allowed, {"b": ["a"]}) == []
    hollow = {"a": {b"d": directory, b"d/e": directory, b"d/e/l": link}, "b": {}}
    assert Oracle.convergence(hollow, {"b": poor}) == []
    assert Oracle.silence(hollow, {"b": poor}, {"b": ["d/e/l"]}) == [], "a directory stands for what is in it"
    mac = Allowance(FsCapabilities(case_insensitive=True, normalising=True))
    alike = {"a": {composed: directory, decomposed: directory}, "b": {decomposed: directory}}
    assert Oracle.silence(alike, {"b": mac}, {"b": [composed.decode()]}) == []
    assert Oracle.silence(alike, {"b": mac}, {"b": [decomposed.decode()]}) == [], (
        "nobody can see which of the two it is"
    )
    assert len(Oracle.silence(alike, {"b": mac}, {"b": []})) == 1
    inside = {"a": {**alike["a"], decomposed + b"/f": file}, "b": alike["b"]}
    assert Oracle.convergence(inside, {"b": mac}) == []
    assert len(Oracle.silence(inside, {"b": mac}, {"b": [decomposed.decode()]})) == 1
    told = {"b": [decomposed.decode() + "/f"]}
    assert Oracle.silence(inside, {"b": mac}, told) == [], "the directory that is there may be the one without the file"
    acted = Allowance(mac.capabilities, frozenset({composed}))
    assert Oracle.silence(inside, {"b": acted}, {"b": []}) == [], "its user may have removed it by another name"
    assert len(Oracle.silence(inside, {"b": Allowance(mac.capabilities, frozenset({b"f"}))}, {"b": []})) == 1
    both = {"a": {composed: file, decomposed: other}, "b": {composed: file, decomposed: other}}
    assert Oracle.convergence(both, {"b": poor}) == []


def test_what_a_reader_writes_stays_there_unless_others_write_the_same() -> None:
    oracle = Oracle()
    oracle.mute("b")
    wrote(oracle, "b", b"one")
    trees = {"a": shows(f=b"one"), "b": shows(f=b"one")}
    assert verdict(oracle, trees) == ["roles"]
    wrote(oracle, "a", b"one")
    assert verdict(oracle, trees) == []


def test_who_is_removed_may_have_only_what_others_who_are_removed_wrote() -> None:
    oracle = Oracle()
    oracle.mute("b")
    wrote(oracle, "b", b"one")
    shown = {name: shows(f=b"one") for name in "abc"}
    assert [v.text.split()[2] for v in oracle.spread(shown)] == ["a", "c"]
    assert [v.text.split()[2] for v in oracle.spread(shown, removed=["b", "c"])] == ["a"]
    assert [v.text.split()[2] for v in oracle.spread(shown, removed=["c"])] == ["a", "c"], "a reader is a member"


def test_who_has_lost_track_may_publish_what_came_from_a_reader() -> None:
    oracle = Oracle()
    oracle.mute("b")
    wrote(oracle, "b", b"one")
    trees = {"a": shows(f=b"one"), "b": shows(f=b"one")}
    oracle.lost_track("b", [content_id(b"one")])
    assert verdict(oracle, trees) == ["roles"]
    oracle.lost_track("a", [content_id(b"one")])
    assert verdict(oracle, trees) == []


def test_what_a_power_cut_leaves_is_no_readers_own() -> None:
    oracle = Oracle()
    oracle.mute("b")
    wrote(oracle, "b", b"")
    wrote(oracle, "a", b"one", durable=False)
    torn = shows(f=b"")
    assert verdict(oracle, {"a": torn, "b": torn}) == ["I2", "roles"]
    oracle.crashed("a", shows(f=b"one"), torn)
    assert verdict(oracle, {"a": torn, "b": torn}) == []
    oracle.deleted("b", b"f", content_id(b""))
    wrote(oracle, "b", b"")
    assert verdict(oracle, {"a": torn, "b": torn}) == []
