%% The answers of the carrier that need no connection.
-module(quic_dist_carrier_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("kernel/include/net_address.hrl").

is_node_name_test_() ->
    [?_assertEqual(Expected, Carrier:is_node_name(Name))
     || Carrier <- [quic_dist, quic6_dist],
        {Expected, Name} <- [{true, 'a@b'}, {true, 'a@::1'}, {false, a},
                             {false, '@b'}, {false, 'a@'}, {false, 'a@b@c'},
                             {false, "a@b"}, {false, 1}]].

select_follows_the_family_test_() ->
    [?_assert(quic_dist:select('a@127.0.0.1')),
     ?_assert(quic6_dist:select('a@::1')),
     ?_assertNot(quic_dist:select('a@::1')),
     ?_assertNot(quic_dist:select(nohost)),
     ?_assertNot(quic6_dist:select(nohost))].

address_test_() ->
    {ok, Host} = inet:gethostname(),
    [?_assertEqual(#net_address{host = Host, protocol = quic, family = inet},
                   quic_dist:address()),
     ?_assertEqual(#net_address{host = "h", protocol = quic, family = inet6},
                   quic6_dist:address("h"))].

families_do_not_clash_test() ->
    {ok, [#{id := Id}]} = quic_dist:childspecs(),
    {ok, [#{id := Id6}]} = quic6_dist:childspecs(),
    ?assertNotEqual(Id, Id6),
    {ok, Specs} = quic_dist:childspecs(),
    {ok, Specs6} = quic6_dist:childspecs(),
    ?assertEqual(ok, supervisor:check_childspecs(Specs ++ Specs6)).

options_test_() ->
    [?_assertEqual(ok, quic_dist:setopts(self(), [{nodelay, false}])),
     ?_assertEqual({error, {badopts, [{packet, 4}]}},
                   quic_dist:setopts(self(), [{nodelay, true}, {packet, 4}])),
     ?_assertEqual({ok, [{nodelay, true}]},
                   quic_dist:getopts(self(), [nodelay, sndbuf]))].
