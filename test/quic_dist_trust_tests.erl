%% The options of trust, whatever their names; what is read from a handshake's first message; weak cookies.
-module(quic_dist_trust_tests).

-include_lib("eunit/include/eunit.hrl").

-define(PEER, [{both, certfile, "c"}, {both, cacertfile, "ca"}]).

nothing_is_the_cookie_test() ->
    {ok, #{by := cookie, client := Side, server := Side}} = quic_dist_trust:merge([]),
    ?assertEqual(#{verify => verify_peer, depth => 10}, Side).

names_of_ssl_and_of_erlang_quic_are_the_same_test() ->
    {ok, Ssl} = quic_dist_trust:merge([{both, certfile, "c"}, {both, keyfile, "k"}, {both, cacertfile, "ca"}]),
    {ok, Quic} = quic_dist_trust:merge([{both, cert_file, <<"c">>}, {both, key_file, "k"}, {both, cacert_file, "ca"}]),
    ?assertEqual(Ssl, Quic),
    ?assertMatch(#{by := files, server := #{certfile := <<"c">>, keyfile := <<"k">>, cacertfile := <<"ca">>}}, Ssl).

the_last_one_wins_and_roles_differ_test() ->
    {ok, #{client := Client, server := Server}} =
        quic_dist_trust:merge(?PEER ++ [{server, certfile, "s"}, {client, depth, 1}, {both, keyfile, "k1"}, {client, keyfile, "k2"}]),
    ?assertMatch(#{certfile := <<"c">>, depth := 1, keyfile := <<"k2">>}, Client),
    ?assertMatch(#{certfile := <<"s">>, depth := 10, keyfile := <<"k1">>}, Server).

no_verification_has_to_be_said_for_both_roles_test_() ->
    None = {both, verify, verify_none},
    [?_assertMatch({ok, #{by := cookie, client := #{verify := verify_none}}}, quic_dist_trust:merge([None])),
     ?_assertMatch({ok, #{by := files}}, quic_dist_trust:merge([None, {server, certfile, "c"}])),
     ?_assertMatch({ok, #{by := files}}, quic_dist_trust:merge([{both, certfile, "c"}, {client, cacertfile, "ca"}, {server, verify, verify_none}])),
     %% one role alone: the other has nothing to show
     ?_assertEqual({error, {bad_option, certfile, undefined}}, quic_dist_trust:merge([{client, verify, verify_none}]))].

bad_options_test_() ->
    [?_assertEqual({error, {bad_option, Name, Value}}, quic_dist_trust:merge(Options))
     || {Options, Name, Value} <- [
         {[{both, certfile, "c"}], cacertfile, undefined},
         {[{both, keyfile, "k"}], certfile, undefined},
         {[{client, certfile, "c"}, {both, cacertfile, "ca"}], certfile, undefined},
         {?PEER ++ [{both, crl_check, true}], crlfile, undefined},
         {?PEER ++ [{both, crl_check, best_effort}], crl_check, best_effort},
         {?PEER ++ [{both, depth, -1}], depth, -1},
         {[{both, certfile, ""}], certfile, ""},
         {[{both, certfile, c}], certfile, c},
         {[{both, verify, false}], verify, false},
         {[{server, verify_fun, f}], verify_fun, f}]].

a_password_is_not_shown_test() ->
    {ok, Trust} = quic_dist_trust:merge(?PEER ++ [{both, password, "pass phrase"}]),
    ?assertEqual(nomatch, string:find(io_lib:format("~p", [Trust]), "phrase")),
    ?assertNot(is_map_key(password, maps:get(server, quic_dist_trust:forget(Trust)))),
    ?assertEqual({error, {bad_option, password, '...'}}, quic_dist_trust:merge(?PEER ++ [{both, password, 17}])).

first_messages_test_() ->
    New = fun(Flags, Name) -> <<$N, Flags:64, 1:32, (byte_size(Name)):16, Name/binary, "more">> end,
    NameMe = 16#2 bsl 32,
    [?_assertEqual(Expected, quic_dist_trust:says_it_is(Message))
     || {Expected, Message} <- [
         {{ok, <<"a@h">>}, New(0, <<"a@h">>)},
         {{ok, <<"a@h">>}, <<$n, 5:16, 0:32, "a@h">>},
         {{ok, <<"h">>}, New(NameMe, <<"h">>)},
         {{ok, <<"h">>}, New(NameMe, <<"x@h">>)},
         {{ok, <<"\303\251@h">>}, New(0, <<"\351@h">>)},
         %% as dist_util reads it, which knows Latin-1 alone: else a certificate of one node would be good for another
         {{ok, <<"\303\203\302\251@h">>}, New(0, <<"\303\251@h">>)}]]
    ++ [?_assertEqual({error, not_in_the_protocol}, quic_dist_trust:says_it_is(Bad))
        || Bad <- [<<>>, <<"N">>, <<"sok">>, <<$N, 0:64, 1:32, 9:16, "short">>, New(0, <<"h">>), New(0, <<"@h">>), New(0, <<"a@">>)]].

allow_test_() ->
    List = [<<"a@h">>, <<"10.0.0.1">>],
    [?_assert(quic_dist_trust:allows(all, <<"x@y">>)) |
     [?_assertEqual(Expected, quic_dist_trust:allows(List, Node))
      || {Expected, Node} <- [{true, <<"a@h">>}, {false, <<"b@h">>}, {true, <<"b@10.0.0.1">>}, {false, <<"h">>}, {true, <<"10.0.0.1">>}]]].

weak_cookies_test_() ->
    [?_assertEqual(Weak, quic_dist_trust:is_weak(Cookie))
     || {Weak, Cookie} <- [{true, <<"secret">>}, {true, <<"monster">>}, {true, <<"1234567890123456789">>}, {true, <<"ABCABCABCABCABCABCABCABC">>},
                           {true, <<>>}, {true, <<"ABCDEFGHIJKLM">>},
                           {false, <<"ABCDEFGHIJKLMNOPQRST">>}, {false, <<"kq8Tz1Wn4Yb">>}]].
