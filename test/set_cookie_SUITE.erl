%% erlang:set_cookie/1,2 on a running node, and `-setcookie Node Cookie', where the cookie's authority is the trust: a node has one cookie for
%% each other node, whichever of them dials. No case waits for anything between setting a cookie and dialling; but all dial again if they are refused (for
%% up to a second a node that had another cookie may be), except where they say `at the first attempt'.
-module(set_cookie_SUITE).

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([both_ways/1, before_and_after_an_attempt/1, a_third_for_each_other/1, only_that_node/1, not_by_the_own/1, own_cookie/1,
         set_twice/1, on_the_command_line/1, several/1, sessions/1, weak/1, not_readable/1]).

-define(LIB, quic_dist_test_lib).
-define(OURS, "qdt_cluster_of_a_78").
-define(THEIRS, "qdt_cluster_of_b_90").
%% Nobody dials but the case: global would, where it is cut off in the midst of its first words.
-define(ALONE, ["-kernel", "dist_auto_connect", "never"]).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [both_ways, before_and_after_an_attempt, a_third_for_each_other, only_that_node, not_by_the_own, own_cookie,
     set_twice, on_the_command_line, several, sessions, weak, not_readable].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) -> ?LIB:init_case(Case, [{C, "it is about QUIC's certificates"} || C <- all()], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

%% A is told B's cookie, and B nothing.
both_ways(_Config) ->
    [A, B] = start([?OURS, ?THEIRS]),
    set(A, B, ?THEIRS),
    %% at the first attempt: the handshake is held until the cookie is found
    true = ?LIB:call(B, net_kernel, connect_node, [?LIB:node(A)]),
    met(B, A),
    met(A, B),
    met(B, A).

before_and_after_an_attempt(_Config) ->
    [A, B] = start([?OURS, ?THEIRS]),
    refused(B, A),
    said(A, "refused a connection from .*our cookie differs from its"),
    said(B, "cannot connect to " ++ name(A) ++ " .*its cookie differs from ours"),
    set(A, B, ?THEIRS),
    met(B, A),
    %% Another one, and back.
    set(A, B, "qdt_third_cookie_12"),
    refused(B, A),
    refused(A, B),
    set(A, B, ?THEIRS),
    met(B, A),
    %% The one that A has itself.
    set(A, B, ?OURS),
    refused(B, A),
    set(B, A, ?OURS),
    met(B, A),
    met(A, B).

a_third_for_each_other(_Config) ->
    [A, B] = start([?OURS, ?THEIRS]),
    set(A, B, "qdt_third_cookie_12"),
    refused(B, A),
    set(B, A, "qdt_third_cookie_12"),
    met(B, A),
    met(A, B).

%% Who has B's cookie as well is not B, and who has another is nobody.
only_that_node(_Config) ->
    [A, B, C, X] = start([?OURS, ?THEIRS, ?THEIRS, "qdt_cookie_of_nobody_34"]),
    set(A, B, ?THEIRS),
    met(B, A),
    refused(C, A),
    said(A, "refused a connection from .* the peer's certificate, of " ++ name(C) ++ ", is of another cookie than is set for it"),
    said(C, name(A) ++ " .*the peer calls our certificate bad"),
    refused(X, A),
    said(A, "refused a connection from .*our cookie differs from its"),
    said(X, "cannot connect to " ++ name(A) ++ " .*its cookie differs from ours"),
    [] = ?LIB:call(A, erlang, nodes, [connected]),
    met(B, A),
    met(C, B).

%% By the cookie of its own, A takes everybody but B.
not_by_the_own(_Config) ->
    [A, B, C] = start([?OURS, ?OURS, ?OURS]),
    met(B, A),
    set(A, B, ?THEIRS),
    refused(B, A),
    met(C, A),
    %% After a second, before a word of the distribution handshake.
    ?LIB:wait_until(said, fun() -> refused(B, A), logged(A, name(B) ++ ", is of another cookie than is set for it") end, 10000),
    said(B, name(A) ++ " .*the peer calls our certificate bad"),
    set(B, A, ?THEIRS),
    met(B, A),
    met(A, B).

%% erlang:set_cookie/1, for who dials and for who is dialled.
own_cookie(_Config) ->
    [A, B] = start([?OURS, ?OURS]),
    met(A, B),
    [begin
         own(First, Cookie),
         refused(First, Second),
         own(Second, Cookie),
         met(First, Second)
     end || {First, Second, Cookie} <- [{A, B, "qdt_first_56"}, {B, A, "qdt_second_78"}, {A, B, ?OURS}]],
    %% The other way round: who is dialled has it first.
    own(A, "qdt_last_90"),
    refused(B, A),
    own(B, "qdt_last_90"),
    met(B, A),
    %% With one for the other.
    own(B, ?THEIRS),
    set(A, B, ?THEIRS),
    met(B, A),
    own(A, ?THEIRS),
    met(B, A),
    own(A, ?OURS),
    met(B, A).

%% The second one while an identity is made of the first, which takes 0.2 s. Nothing changes afterwards.
set_twice(_Config) ->
    [A, B] = start([?OURS, ?THEIRS]),
    ok = ?LIB:run(A, fun() ->
        Set = fun(Cookie) -> true = erlang:set_cookie(list_to_atom(Cookie)) end,
        quic_dist_test_trust:while_it_is_made({identity_new, 3}, fun(N) -> Set("qdt_first_" ++ integer_to_list(N)) end, fun() -> Set(?THEIRS) end)
    end, 60000),
    met(B, A),
    met(A, B).

on_the_command_line(_Config) ->
    [Name, NameB] = [?LIB:name("s") || _ <- [a, b]],
    A = ?LIB:start(#{name => Name, cookie => ?OURS, args => ["-setcookie", NameB, ?THEIRS | ?ALONE]}),
    B = ?LIB:start(#{name => NameB, cookie => ?THEIRS, args => ?ALONE}),
    C = ?LIB:start(#{tag => "s", cookie => ?OURS, args => ?ALONE}),
    met(B, A),
    met(A, B),
    met(C, A),
    refused(C, B).

%% They are made one after the other, and who is the last waits for his.
several(_Config) ->
    Cookies = ["qdt_cluster_number_" ++ integer_to_list(N) || N <- lists:seq(1, 4)],
    [A | Others] = start([?OURS | Cookies]),
    [set(A, B, Cookie) || {B, Cookie} <- lists:zip(Others, Cookies)],
    [met(B, A) || B <- lists:reverse(Others)],
    %% Each by its own, and by no other's.
    [First, Second | _] = Others,
    own(First, lists:nth(2, Cookies)),
    refused(First, A),
    met(Second, A).

%% What is kept of a session leads to nothing by another cookie.
sessions(_Config) ->
    ok = ?LIB:not_at_midnight(30),
    [A, B] = start([?OURS, ?OURS]),
    [false, true] = [meet(B, A) || _ <- [1, 2]],
    own(B, ?THEIRS),
    set(A, B, ?THEIRS),
    [false, false] = [meet(B, A) || _ <- [1, 2]],
    own(B, ?OURS),
    set(A, B, ?OURS),
    [false, true] = [meet(B, A) || _ <- [1, 2]],
    %% B has a session and does not know that it is somebody else now.
    set(A, B, ?THEIRS),
    refused(B, A).

%% A cookie for another node is warned about as the own is, when it is set and when it is dialled with.
weak(_Config) ->
    [A, B, C] = start([?OURS, ?THEIRS, "secret"]),
    set(A, B, ?THEIRS),
    met(B, A),
    set(A, C, "secret"),
    said(A, "the cookie that is set for " ++ name(C) ++ " is weak"),
    met(A, C),
    false = logged(A, "the cookie that is set for " ++ name(B)).

%% Nothing of another node's cookie is to be seen in the server that has made something of it.
not_readable(_Config) ->
    [A, B] = start([?OURS, ?THEIRS]),
    set(A, B, ?THEIRS),
    met(B, A),
    State = ?LIB:run(A, fun() -> io_lib:format("~p ~p", [sys:get_state(quic_dist_endpoint), quic_dist:info()]) end),
    [nomatch = string:find(State, Cookie) || Cookie <- [?OURS, ?THEIRS]],
    ok.

%%% Tools

start(Cookies) -> ?LIB:start_all([#{tag => "s", cookie => Cookie, args => ?ALONE} || Cookie <- Cookies]).

name(Node) -> atom_to_list(?LIB:node(Node)).

set(A, B, Cookie) -> true = ?LIB:call(A, erlang, set_cookie, [?LIB:node(B), list_to_atom(Cookie)]).

own(A, Cookie) -> true = ?LIB:call(A, erlang, set_cookie, [list_to_atom(Cookie)]).

met(A, B) ->
    _ = meet(A, B),
    ok.

%% A dials B, and both talk over it; they are apart again afterwards. Whether a session was resumed.
meet(A, B) ->
    ok = ?LIB:connect(A, B),
    [pong = ?LIB:call(X, net_adm, ping, [?LIB:node(Y)]) || {X, Y} <- [{A, B}, {B, A}]],
    #{resumed := Resumed, verified := cookie, peer_name := NameB, role := client} = ?LIB:connection(A, B),
    #{resumed := Resumed, verified := cookie, peer_name := NameA, role := server} = ?LIB:connection(B, A),
    [NameA, NameB] = [atom_to_binary(?LIB:node(N)) || N <- [A, B]],
    ok = ?LIB:disconnect(A, B),
    Resumed.

refused(A, B) ->
    false = ?LIB:call(A, net_kernel, connect_node, [?LIB:node(B)]),
    false = lists:member(?LIB:node(A), ?LIB:call(B, erlang, nodes, [connected])),
    ok.

logged(Node, Line) -> re:run(?LIB:output(Node), Line) =/= nomatch.

said(Node, Line) -> ?LIB:wait_until({said, Line}, fun() -> logged(Node, Line) end, 20000).
