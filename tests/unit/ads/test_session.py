"""Tests of the session state machine, rule by rule; `test_session_converges` combines all of them at random.

Longer than 400 lines because it is a list: each test is one rule, and all share the view and the stream.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import pytest

from xds.ads.messages import Received, Request, Response
from xds.ads.session import Session
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER, SCOPED_ROUTE, SECRET, Resource


class View:
    """A `ResourceView` that tests write into."""

    def __init__(self) -> None:
        self.resources: dict[str, dict[str, Resource]] = defaultdict(dict)
        self.is_complete = True
        self.on_demand = False

    def complete(self) -> bool:
        return self.is_complete

    def get(self, type_url: str, name: str) -> Resource | None:
        return self.resources[type_url].get(name)

    def select(self, type_url: str, names: Collection[str]) -> list[Resource]:
        return [resource for name in names if (resource := self.get(type_url, name)) is not None]

    def names(self, type_url: str) -> list[str]:
        own = type_url == CLUSTER and self.on_demand
        return [name for name in self.resources[type_url] if not own or self.asked_as(name) is None]

    def asked_as(self, name: str) -> str | None:
        return None if name.startswith("own") else name.rpartition("~")[2]


class Stream:
    """A session with its view, and the proxy's side of the conversation in short words."""

    def __init__(self, *, delta: bool = True) -> None:
        self.view = View()
        self.session = Session(self.view, delta=delta)
        self.delta = delta

    def put(
        self,
        type_url: str,
        name: str,
        version: str,
        endpoints: str = "",
        clusters: tuple[str, ...] = (),
        of_all_upstreams: bool = False,
    ) -> None:
        resource = Resource(type_url, name, version, b"", endpoints, clusters, of_all_upstreams=of_all_upstreams)
        self.view.resources[type_url][name] = resource
        self.session.changed(type_url, [name])

    def cluster(self, name: str, version: str) -> None:
        self.put(CLUSTER, name, version, endpoints=name)

    def drop(self, type_url: str, name: str) -> None:
        del self.view.resources[type_url][name]
        self.session.changed(type_url, [name])

    def subscribe(self, type_url: str, *names: str, known: dict[str, str] | None = None) -> None:
        if self.delta:
            self.session.receive(Request(type_url, subscribe=names, initial_versions=known or {}))
        else:
            self.session.receive(Request(type_url, names=names))

    def ack(self, response: Response, *names: str) -> Received:
        return self.session.receive(Request(response.type_url, response.nonce, names=None if self.delta else names))

    def nack(self, response: Response, words: str, *names: str) -> Received:
        return self.session.receive(
            Request(response.type_url, response.nonce, error=words, names=None if self.delta else names)
        )

    def next(self) -> Response:
        worth_asking = self.session.may_send
        response = self.session.next_response()
        assert response is not None, "nothing to send"
        assert worth_asking
        return response

    def nothing_to_send(self) -> bool:
        return self.session.next_response() is None


def sent(response: Response) -> list[str]:
    return [f"{r.name}@{r.version}" for r in response.resources]


@pytest.fixture
def stream() -> Stream:
    return Stream()


def test_an_empty_first_subscription_means_everything_for_clusters(stream: Stream) -> None:
    stream.cluster("a", "1")
    stream.cluster("b", "1")
    stream.subscribe(CLUSTER)
    assert sent(stream.next()) == ["a@1", "b@1"]


def test_an_empty_first_subscription_means_nothing_for_endpoints(stream: Stream) -> None:
    stream.put(ENDPOINT, "a", "1")
    stream.subscribe(ENDPOINT)
    assert stream.nothing_to_send()


def test_a_fresh_proxy_gets_an_empty_first_answer_so_that_it_does_not_wait(stream: Stream) -> None:
    stream.subscribe(LISTENER)
    assert stream.next().resources == ()
    assert stream.nothing_to_send()


def test_may_send_says_whether_a_response_may_be_due(stream: Stream) -> None:
    stream.cluster("a", "1")
    assert not stream.session.may_send
    stream.subscribe(CLUSTER)
    response = stream.next()
    assert not stream.session.may_send, "one is outstanding"
    stream.ack(response)
    assert not stream.session.may_send
    stream.cluster("a", "2")
    assert stream.session.may_send


def test_nothing_is_sent_for_a_type_without_a_request(stream: Stream) -> None:
    stream.cluster("a", "1")
    assert stream.nothing_to_send()


def test_unknown_types_are_never_answered(stream: Stream) -> None:
    stream.subscribe("type.googleapis.com/envoy.config.route.v3.VirtualHost", "x")
    assert stream.nothing_to_send()


def test_one_response_at_a_time_and_what_changes_meanwhile_coalesces(stream: Stream) -> None:
    stream.cluster("a", "1")
    stream.subscribe(CLUSTER)
    first = stream.next()
    stream.cluster("a", "2")
    stream.cluster("b", "1")
    stream.cluster("a", "3")
    assert stream.nothing_to_send()
    stream.ack(first)
    assert sent(stream.next()) == ["a@3", "b@1"]


def test_an_old_nonce_acknowledges_nothing(stream: Stream) -> None:
    stream.cluster("a", "1")
    stream.subscribe(CLUSTER)
    first = stream.next()
    stream.session.receive(Request(CLUSTER, "not the nonce"))
    stream.cluster("a", "2")
    assert stream.nothing_to_send()
    assert stream.ack(first).acknowledged == CLUSTER


def test_a_listener_waits_for_the_clusters_it_names_to_be_acknowledged(stream: Stream) -> None:
    stream.subscribe(CLUSTER)
    stream.ack(stream.next())
    stream.subscribe(LISTENER)
    stream.ack(stream.next())
    stream.cluster("a", "1")
    stream.put(LISTENER, "l", "1", clusters=("a",))
    clusters = stream.next()
    assert clusters.type_url == CLUSTER
    assert stream.nothing_to_send()
    stream.ack(clusters)
    assert sent(stream.next()) == ["l@1"]


def test_a_listener_waits_for_no_other_clusters(stream: Stream) -> None:
    """A denial must not queue behind somebody else's new upstream that is slow to warm."""
    stream.cluster("local_app", "1")
    stream.put(LISTENER, "public", "1", clusters=("local_app",))
    stream.subscribe(CLUSTER)
    stream.ack(stream.next())
    stream.subscribe(LISTENER)
    stream.ack(stream.next())
    stream.cluster("slow", "1")
    assert sent(stream.next()) == ["slow@1"]
    stream.put(LISTENER, "public", "2", clusters=("local_app",))
    assert sent(stream.next()) == ["public@2"]


def test_a_first_listener_answer_is_not_empty_because_its_clusters_are_on_the_way(stream: Stream) -> None:
    stream.cluster("a", "1")
    stream.put(LISTENER, "l", "1", clusters=("a",))
    stream.subscribe(CLUSTER)
    stream.subscribe(LISTENER)
    clusters = stream.next()
    assert stream.nothing_to_send()
    stream.ack(clusters)
    assert sent(stream.next()) == ["l@1"]


def test_removals_do_not_wait_for_endless_additions(stream: Stream) -> None:
    stream.cluster("denied", "1")
    stream.subscribe(CLUSTER)
    response = stream.next()
    stream.drop(CLUSTER, "denied")
    stream.cluster("busy", "1")
    stream.ack(response)
    response = stream.next()
    assert (sent(response), response.removed) == (["busy@1"], ("denied",))


def test_inherited_resources_are_not_removed_before_everything_has_been_read(stream: Stream) -> None:
    """A restarted control plane that does not know an upstream yet must not remove it."""
    stream.view.is_complete = False
    stream.cluster("known", "1")
    stream.subscribe(CLUSTER, known={"known": "1", "in use": "1", "really gone": "1"})
    assert stream.nothing_to_send()
    stream.cluster("in use", "1")
    assert stream.nothing_to_send()
    stream.view.is_complete = True
    assert stream.next().removed == ("really gone",)


def test_a_removal_is_applied_although_another_list_can_not_be_read(stream: Stream) -> None:
    """One unreadable upstream must not keep a denied one alive."""
    stream.view.is_complete = False
    stream.cluster("brought along", "1")
    stream.subscribe(CLUSTER, known={"brought along": "1"})
    stream.cluster("new", "1")
    stream.ack(stream.next())
    stream.drop(CLUSTER, "brought along")
    stream.drop(CLUSTER, "new")
    assert stream.next().removed == ("brought along", "new")


def test_an_inherited_listener_keeps_the_addresses_that_are_not_read_yet(stream: Stream) -> None:
    """Without them, connections to those addresses would go past the mesh."""
    stream.view.is_complete = False
    stream.put(LISTENER, "outbound", "fewer", of_all_upstreams=True)
    stream.put(LISTENER, "public", "2")
    stream.subscribe(LISTENER, known={"outbound": "all", "public": "1"})
    response = stream.next()
    assert sent(response) == ["public@2"]
    stream.ack(response)
    assert stream.nothing_to_send()
    stream.put(LISTENER, "outbound", "all", of_all_upstreams=True)
    stream.view.is_complete = True
    assert stream.nothing_to_send()
    stream.put(LISTENER, "outbound", "more", of_all_upstreams=True)
    assert sent(stream.next()) == ["outbound@more"]


def test_a_denied_cluster_is_removed_while_its_listener_is_held_back(stream: Stream) -> None:
    stream.view.is_complete = False
    stream.cluster("denied", "1")
    stream.put(LISTENER, "outbound", "fewer", of_all_upstreams=True)
    stream.subscribe(CLUSTER, known={"denied": "1"})
    stream.subscribe(LISTENER, known={"outbound": "all"})
    assert stream.nothing_to_send()
    stream.drop(CLUSTER, "denied")
    assert stream.next().removed == ("denied",)


@pytest.mark.parametrize("complete_at_first", [True, False])
def test_a_proxy_that_was_complete_once_holds_nothing_back(stream: Stream, complete_at_first: bool) -> None:
    stream.view.is_complete = complete_at_first
    stream.put(LISTENER, "outbound", "1", of_all_upstreams=True)
    stream.subscribe(LISTENER, known={"outbound": "1"})
    assert stream.nothing_to_send()
    stream.view.is_complete = True
    assert stream.nothing_to_send()
    stream.view.is_complete = False
    stream.put(LISTENER, "outbound", "2", of_all_upstreams=True)
    assert sent(stream.next()) == ["outbound@2"]


def test_a_cluster_is_not_removed_before_the_listener_that_names_it(stream: Stream) -> None:
    stream.cluster("a", "1")
    stream.put(LISTENER, "l", "1", clusters=("a",))
    stream.subscribe(CLUSTER)
    stream.ack(stream.next())
    stream.subscribe(LISTENER)
    stream.ack(stream.next())
    stream.drop(CLUSTER, "a")
    stream.drop(LISTENER, "l")
    stream.cluster("other", "1")
    added = stream.next()
    assert (sent(added), added.removed) == (["other@1"], ())
    listener = stream.next()
    assert (listener.type_url, listener.removed) == (LISTENER, ("l",))
    stream.ack(added)
    stream.ack(listener)
    assert stream.next().removed == ("a",)


def test_a_removal_in_a_rejected_response_is_sent_again(stream: Stream) -> None:
    for name in ("x", "y", "z"):
        stream.cluster(name, "1")
    stream.subscribe(CLUSTER)
    stream.ack(stream.next())
    stream.drop(CLUSTER, "y")
    stream.cluster("x", "2")
    stream.cluster("z", "2")
    response = stream.next()
    assert response.removed == ("y",)
    stream.nack(response, "boom")
    removed: set[str] = set()
    while (again := stream.session.next_response()) is not None:
        removed |= set(again.removed)
        stream.ack(again)
    assert removed == {"y"}


def test_the_other_resources_of_a_rejected_response_are_tried_again(stream: Stream) -> None:
    stream.cluster("x", "1")
    stream.cluster("y", "1")
    stream.subscribe(CLUSTER)
    received = stream.nack(stream.next(), "Proto constraint validation failed: name: x")
    assert [r.name for r in received.rejections] == ["x"]
    removal = stream.next()
    assert (sent(removal), removal.removed) == ([], ("x",))
    stream.ack(removal)
    assert sent(stream.next()) == ["y@1"]


@pytest.mark.parametrize("delta", [True, False])
def test_a_denial_is_sent_while_clusters_keep_changing(delta: bool) -> None:
    stream = Stream(delta=delta)
    stream.cluster("local_app", "1")
    stream.cluster("busy", "0")
    stream.put(LISTENER, "public", "1", clusters=("local_app",))
    stream.subscribe(CLUSTER)
    stream.ack(stream.next())
    stream.subscribe(LISTENER)
    stream.ack(stream.next())
    stream.put(LISTENER, "public", "deny", clusters=("local_app",))
    stream.cluster("busy", "1")
    busy = stream.next()
    assert busy.type_url == CLUSTER
    assert sent(stream.next()) == ["public@deny"]


@pytest.mark.parametrize("delta", [True, False])
def test_a_removal_is_sent_while_clusters_keep_changing(delta: bool) -> None:
    stream = Stream(delta=delta)
    stream.cluster("gone", "1")
    stream.cluster("busy", "0")
    stream.subscribe(CLUSTER)
    stream.ack(stream.next())
    stream.drop(CLUSTER, "gone")
    stream.cluster("busy", "1")
    response = stream.next()
    assert (sent(response), response.removed) == (["busy@1"], ("gone",))


def test_endpoints_of_a_cluster_that_changed_before_they_were_asked_for_are_sent_too(stream: Stream) -> None:
    """A reconnect: clusters are answered at once, then the endpoints are asked for with the version they have."""
    stream.cluster("a", "2")
    stream.put(ENDPOINT, "a", "1")
    stream.subscribe(CLUSTER, known={"a": "1"})
    assert sent(stream.next()) == ["a@2"]
    stream.subscribe(ENDPOINT, "a", known={"a": "1"})
    assert sent(stream.next()) == ["a@1"]


def test_a_rejected_version_is_not_sent_again_after_a_good_one_either(stream: Stream) -> None:
    stream.cluster("a", "bad")
    stream.subscribe(CLUSTER)
    stream.nack(stream.next(), "cluster(s) a: no")
    stream.cluster("a", "good")
    stream.ack(stream.next())
    stream.cluster("a", "bad")
    assert stream.nothing_to_send()


def test_a_rejection_that_names_no_resource_is_reported(stream: Stream) -> None:
    stream.cluster("a", "1")
    stream.cluster("b", "1")
    stream.subscribe(CLUSTER)
    received = stream.nack(stream.next(), "no")
    assert (received.rejections, received.unexplained) == ((), "no")


def test_a_cluster_is_removed_after_the_listener_that_used_it_was_replaced(stream: Stream) -> None:
    stream.cluster("old", "1")
    stream.put(LISTENER, "l", "1")
    stream.subscribe(CLUSTER)
    stream.ack(stream.next())
    stream.subscribe(LISTENER)
    stream.ack(stream.next())
    stream.drop(CLUSTER, "old")
    stream.put(LISTENER, "l", "2")
    listener = stream.next()
    assert sent(listener) == ["l@2"]
    assert stream.nothing_to_send()
    stream.ack(listener)
    removal = stream.next()
    assert (removal.type_url, removal.removed) == (CLUSTER, ("old",))


def test_endpoints_of_a_changed_cluster_are_sent_without_a_request(stream: Stream) -> None:
    stream.cluster("a", "1")
    stream.put(ENDPOINT, "a", "1")
    stream.subscribe(CLUSTER)
    stream.ack(stream.next())
    stream.subscribe(ENDPOINT, "a")
    stream.ack(stream.next())
    stream.cluster("a", "2")
    clusters = stream.next()
    assert sent(clusters) == ["a@2"]
    endpoints = stream.next()
    assert (endpoints.type_url, sent(endpoints)) == (ENDPOINT, ["a@1"])


# -- endpoints ahead of their subscription ---------------------------------------------------------------------------


@pytest.fixture
def following(stream: Stream) -> Stream:
    """Return a proxy that has asked for endpoints before, and is sent a new cluster and what follows it."""
    stream.subscribe(CLUSTER)
    stream.ack(stream.next())
    stream.subscribe(ENDPOINT)
    stream.put(ENDPOINT, "a", "1")
    stream.cluster("a", "1")
    assert sent(stream.next()) == ["a@1"]
    return stream


def test_a_new_clusters_endpoints_follow_it_and_answer_the_subscription_that_crosses_them(following: Stream) -> None:
    endpoints = following.next()
    assert (endpoints.type_url, sent(endpoints)) == (ENDPOINT, ["a@1"])
    following.subscribe(ENDPOINT, "a")
    following.ack(endpoints)
    assert following.nothing_to_send()
    following.put(ENDPOINT, "a", "2")
    assert sent(following.next()) == ["a@2"]


def test_endpoints_that_came_before_they_were_asked_for_are_sent_again(following: Stream) -> None:
    following.ack(following.next())
    assert following.nothing_to_send()
    following.subscribe(ENDPOINT, "a")
    assert sent(following.next()) == ["a@1"]


def test_endpoints_are_sent_again_where_one_request_acknowledges_and_asks(following: Stream) -> None:
    endpoints = following.next()
    following.session.receive(Request(ENDPOINT, endpoints.nonce, subscribe=("a",)))
    assert sent(following.next()) == ["a@1"]


def test_endpoints_without_a_request_are_not_sent(following: Stream) -> None:
    following.ack(following.next())
    following.put(ENDPOINT, "a", "2")
    assert following.nothing_to_send()


def test_endpoints_that_change_while_a_subscription_crosses_them_are_sent_again(following: Stream) -> None:
    endpoints = following.next()
    following.put(ENDPOINT, "a", "2")
    following.subscribe(ENDPOINT, "a")
    following.ack(endpoints)
    assert sent(following.next()) == ["a@2"]


def test_endpoints_that_disappear_before_they_were_sent_are_answered(following: Stream) -> None:
    following.drop(ENDPOINT, "a")
    assert following.nothing_to_send()
    following.subscribe(ENDPOINT, "a")
    assert following.next().removed == ("a",)


def test_endpoints_are_not_sent_before_the_first_request_for_any(stream: Stream) -> None:
    stream.put(ENDPOINT, "a", "1")
    stream.cluster("a", "1")
    stream.subscribe(CLUSTER)
    assert stream.next().type_url == CLUSTER
    assert stream.nothing_to_send()


def test_endpoints_are_not_sent_before_the_subscription_in_state_of_the_world() -> None:
    stream = Stream(delta=False)
    stream.subscribe(CLUSTER)
    stream.ack(stream.next())
    stream.put(ENDPOINT, "other", "1")
    stream.subscribe(ENDPOINT, "other")
    stream.ack(stream.next(), "other")
    stream.put(ENDPOINT, "a", "1")
    stream.cluster("a", "1")
    assert stream.next().type_url == CLUSTER
    assert stream.nothing_to_send()


def test_on_demand_a_dialed_cluster_is_sent_with_its_endpoints(asking: Stream) -> None:
    asking.ack(asking.next())
    asking.subscribe(ENDPOINT, "own")
    asking.ack(asking.next())
    asking.subscribe(CLUSTER, "b")
    assert names_in(asking.next()) == ["b"]
    endpoints = asking.next()
    assert (endpoints.type_url, names_in(endpoints)) == (ENDPOINT, ["b"])
    asking.subscribe(ENDPOINT, "b")
    asking.ack(endpoints)
    assert asking.nothing_to_send()


def test_on_demand_a_cluster_that_appears_late_brings_its_endpoints(asking: Stream) -> None:
    asking.ack(asking.next())
    asking.subscribe(CLUSTER, "later")
    asking.ack(asking.next())
    asking.subscribe(ENDPOINT)
    asking.put(ENDPOINT, "later", "1")
    asking.cluster("later", "1")
    asking.ack(asking.next())
    assert names_in(asking.next()) == ["later"]


def test_a_reconnecting_proxy_gets_only_what_differs(stream: Stream) -> None:
    stream.cluster("same", "1")
    stream.cluster("changed", "2")
    stream.cluster("new", "1")
    stream.subscribe(CLUSTER, known={"same": "1", "changed": "1", "gone": "7"})
    first = stream.next()
    assert (sent(first), first.removed) == (["changed@2", "new@1"], ("gone",))


def test_a_reconnecting_proxy_that_has_everything_gets_nothing(stream: Stream) -> None:
    stream.cluster("a", "1")
    stream.put(ENDPOINT, "a", "1")
    stream.subscribe(CLUSTER, known={"a": "1"})
    stream.subscribe(ENDPOINT, "a", known={"a": "1"})
    assert stream.nothing_to_send()


def test_a_name_that_is_requested_again_is_sent_again(stream: Stream) -> None:
    stream.put(SECRET, "leaf", "1")
    stream.subscribe(SECRET, "leaf")
    stream.ack(stream.next())
    stream.subscribe(SECRET, "leaf")
    assert sent(stream.next()) == ["leaf@1"]


def test_a_name_that_does_not_exist_is_answered_once_and_sent_when_it_appears(stream: Stream) -> None:
    stream.subscribe(ENDPOINT, "a")
    missing = stream.next()
    assert missing.removed == ("a",)
    stream.ack(missing)
    assert stream.nothing_to_send()
    stream.put(ENDPOINT, "a", "1")
    assert sent(stream.next()) == ["a@1"]


def test_an_unsubscribed_name_is_no_longer_sent(stream: Stream) -> None:
    stream.put(ENDPOINT, "a", "1")
    stream.subscribe(ENDPOINT, "a")
    stream.ack(stream.next())
    stream.session.receive(Request(ENDPOINT, unsubscribe=("a",)))
    stream.put(ENDPOINT, "a", "2")
    assert stream.nothing_to_send()


def test_leaving_the_wildcard_keeps_the_named_ones(stream: Stream) -> None:
    stream.cluster("a", "1")
    stream.cluster("b", "1")
    stream.subscribe(CLUSTER, "*", "a")
    stream.ack(stream.next())
    stream.session.receive(Request(CLUSTER, unsubscribe=("*",)))
    stream.cluster("a", "2")
    stream.cluster("b", "2")
    assert sent(stream.next()) == ["a@2"]


def test_a_rejected_resource_is_named_and_never_sent_again(stream: Stream) -> None:
    stream.put(LISTENER, "bad", "1")
    stream.put(LISTENER, "good", "1")
    stream.subscribe(CLUSTER)
    stream.ack(stream.next())
    stream.subscribe(LISTENER)
    received = stream.nack(stream.next(), "Error adding/updating listener(s) bad: no such filter")
    assert [(r.name, r.version) for r in received.rejections] == [("bad", "1")]
    assert stream.nothing_to_send()
    stream.session.changed(LISTENER, ["bad", "good"])
    assert stream.nothing_to_send()
    stream.put(LISTENER, "bad", "2")
    assert sent(stream.next()) == ["bad@2"]


def test_a_name_with_the_rejected_name_as_its_prefix_is_not_blamed(stream: Stream) -> None:
    stream.cluster("vip:240.0.0.1", "1")
    stream.cluster("vip:240.0.0.11", "1")
    stream.subscribe(CLUSTER)
    received = stream.nack(stream.next(), "Error adding/updating cluster(s) vip:240.0.0.11: unknown field")
    assert [r.name for r in received.rejections] == ["vip:240.0.0.11"]


def test_where_envoy_names_no_culprit_each_is_tried_alone(stream: Stream) -> None:
    for name in ("a", "b", "c"):
        stream.put(ENDPOINT, name, "1")
    stream.subscribe(ENDPOINT, "a", "b", "c")
    assert stream.nack(stream.next(), "malformed IP address").rejections == ()
    alone = []
    for culprit in (False, True, False):
        response = stream.next()
        alone += sent(response)
        if culprit:
            assert [r.name for r in stream.nack(response, "malformed IP address").rejections] == ["b"]
        else:
            stream.ack(response)
    assert alone == ["a@1", "b@1", "c@1"]
    assert stream.nothing_to_send()


def test_state_of_the_world_lists_everything_and_removes_by_absence() -> None:
    stream = Stream(delta=False)
    stream.cluster("a", "1")
    stream.cluster("b", "1")
    stream.subscribe(CLUSTER)
    first = stream.next()
    assert sent(first) == ["a@1", "b@1"]
    stream.ack(first)
    stream.cluster("a", "2")
    second = stream.next()
    assert sent(second) == ["a@2", "b@1"]
    stream.ack(second)
    stream.drop(CLUSTER, "b")
    assert sent(stream.next()) == ["a@2"]


def test_state_of_the_world_goes_on_listing_the_last_good_version_of_a_rejected_listener() -> None:
    stream = Stream(delta=False)
    stream.put(LISTENER, "a", "1")
    stream.subscribe(LISTENER)
    stream.ack(stream.next())
    stream.put(LISTENER, "a", "bad")
    stream.nack(stream.next(), "listener(s) a: bad")
    assert stream.nothing_to_send()
    stream.put(LISTENER, "b", "1")
    assert sent(stream.next()) == ["a@1", "b@1"]


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("type_url", [CLUSTER, SCOPED_ROUTE])
def test_a_rejected_cluster_is_removed_at_once_and_sent_again_when_it_changes(delta: bool, type_url: str) -> None:
    stream = Stream(delta=delta)
    stream.put(type_url, "a", "1")
    stream.put(type_url, "b", "1")
    stream.subscribe(type_url)
    stream.ack(stream.next())
    stream.put(type_url, "a", "bad")
    received = stream.nack(stream.next(), "Error adding/updating cluster(s) a: bad")
    assert [each.name for each in received.rejections] == ["a"]
    removal = stream.next()
    assert removal.removed == ("a",)
    assert sent(removal) == ([] if delta else ["b@1"])
    stream.ack(removal)
    assert stream.nothing_to_send()
    assert [each.version for each in stream.session.rejections()] == ["bad"]
    stream.put(type_url, "a", "2")
    assert sent(stream.next()) == (["a@2"] if delta else ["a@2", "b@1"])
    assert not list(stream.session.rejections())


def test_state_of_the_world_accepts_new_names_with_the_acknowledgement() -> None:
    stream = Stream(delta=False)
    stream.put(ENDPOINT, "a", "1")
    stream.put(ENDPOINT, "b", "1")
    stream.subscribe(ENDPOINT, "a")
    first = stream.next()
    assert sent(first) == ["a@1"]
    stream.ack(first, "a", "b")
    assert sent(stream.next()) == ["b@1"]


def test_state_of_the_world_ignores_the_names_of_an_outdated_answer() -> None:
    stream = Stream(delta=False)
    stream.put(ENDPOINT, "a", "1")
    stream.put(ENDPOINT, "b", "1")
    stream.subscribe(ENDPOINT, "a")
    first = stream.next()
    stream.ack(first, "a", "b")
    second = stream.next()
    stream.session.receive(Request(ENDPOINT, first.nonce, names=("a",)))
    stream.ack(second, "a", "b")
    stream.put(ENDPOINT, "b", "2")
    assert sent(stream.next()) == ["b@2"]


# -- on demand ------------------------------------------------------------------------------------------------------


def names_in(response: Response) -> list[str]:
    return [resource.name for resource in response.resources]


@pytest.fixture
def asking() -> Stream:
    """Return a stream on which clusters come on demand, except the proxy's own; it has subscribed to everything."""
    stream = Stream()
    stream.view.on_demand = True
    for name in ("own", "a", "b", "failover-target~0~a"):
        stream.cluster(name, "1")
        stream.put(ENDPOINT, name, "1")
    stream.subscribe(CLUSTER, "*")
    return stream


def test_on_demand_a_wildcard_stands_for_the_proxys_own(asking: Stream) -> None:
    assert names_in(asking.next()) == ["own"]


def test_on_demand_a_name_is_answered_and_kept_current(asking: Stream) -> None:
    asking.ack(asking.next())
    asking.cluster("b", "2")
    assert asking.session.next_response() is None, "nobody asked for it"
    asking.subscribe(CLUSTER, "b")
    response = asking.next()
    assert names_in(response) == ["b"]
    asking.ack(response)
    asking.cluster("b", "3")
    assert names_in(asking.next()) == ["b"]


def test_old_members_of_an_aggregate_are_removed_when_the_new_one_is_acknowledged(stream: Stream) -> None:
    stream.cluster("member", "1")
    stream.put(CLUSTER, "whole", "1", clusters=("member",))
    stream.subscribe(CLUSTER)
    stream.ack(stream.next())
    stream.ack(stream.next())
    stream.drop(CLUSTER, "member")
    stream.put(CLUSTER, "whole", "2")
    response = stream.next()
    assert (sent(response), response.removed) == (["whole@2"], ())
    stream.ack(response)
    assert stream.next().removed == ("member",)


def test_an_aggregate_cluster_and_its_members_are_removed_together(stream: Stream) -> None:
    stream.cluster("member", "1")
    stream.put(CLUSTER, "whole", "1", clusters=("member",))
    stream.subscribe(CLUSTER, known={"member": "1", "whole": "1"})
    stream.drop(CLUSTER, "member")
    assert stream.nothing_to_send(), "it is still made of it"
    stream.drop(CLUSTER, "whole")
    assert stream.next().removed == ("member", "whole")


def test_on_demand_the_clusters_that_a_cluster_names_are_sent_before_it(asking: Stream) -> None:
    asking.ack(asking.next())
    asking.put(CLUSTER, "a", "2", clusters=("failover-target~0~a",))
    asking.subscribe(CLUSTER, "a")
    response = asking.next()
    assert names_in(response) == ["failover-target~0~a"]
    assert asking.session.next_response() is None, "not warm yet"
    asking.ack(response)
    assert names_in(asking.next()) == ["a"]


def test_on_demand_an_absent_name_is_answered_at_once_and_sent_when_it_appears(asking: Stream) -> None:
    asking.ack(asking.next())
    asking.subscribe(CLUSTER, "later")
    response = asking.next()
    assert response.removed == ("later",)
    asking.ack(response)
    asking.cluster("later", "1")
    assert names_in(asking.next()) == ["later"]


def test_on_demand_a_denied_cluster_is_removed_and_its_request_remembered(asking: Stream) -> None:
    asking.ack(asking.next())
    asking.subscribe(CLUSTER, "b")
    asking.ack(asking.next())
    asking.drop(CLUSTER, "b")
    response = asking.next()
    assert response.removed == ("b",)
    asking.ack(response)
    asking.cluster("b", "9")
    assert names_in(asking.next()) == ["b"]


def test_on_demand_inherited_resources_stay_if_requested_and_are_removed_otherwise(asking: Stream) -> None:
    stream = Stream()
    stream.view = asking.view
    stream.session = Session(stream.view, delta=True)
    stream.subscribe(CLUSTER, "*", "b", known={"own": "1", "a": "1", "b": "1"})
    response = stream.next()
    assert (names_in(response), response.removed) == ([], ("a",))
    stream.ack(response)
    assert stream.session.next_response() is None


def test_a_switch_to_on_demand_removes_what_was_not_requested(stream: Stream) -> None:
    for name in ("own", "a", "b"):
        stream.cluster(name, "1")
    stream.subscribe(CLUSTER, "*")
    stream.ack(stream.next())
    stream.subscribe(CLUSTER, "b")
    stream.ack(stream.next())
    stream.view.on_demand = True
    stream.session.changed(CLUSTER, ["a", "b"])
    assert stream.next().removed == ("a",)


# -- large responses ------------------------------------------------------------------------------------------------


def test_large_additions_are_held_back_and_changes_overtake_them(stream: Stream) -> None:
    stream.put(ENDPOINT, "known", "1")
    stream.subscribe(ENDPOINT, "known", *map(str, range(9)))
    stream.ack(stream.next())
    for name in map(str, range(9)):
        stream.put(ENDPOINT, name, "1")
    assert stream.session.next_response(most=4) is None
    assert stream.session.held_back
    stream.put(ENDPOINT, "known", "2")
    response = stream.session.next_response(most=4)
    assert response is not None
    assert names_in(response) == ["known"]
    stream.ack(response)
    assert stream.session.next_response(most=4) is None
    assert len(names_in(stream.next())) == 9
    assert not stream.session.held_back
