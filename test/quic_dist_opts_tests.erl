%% Reading and checking of options: defaults, ranges, unknown names.
-module(quic_dist_opts_tests).

-include_lib("eunit/include/eunit.hrl").

-define(SETUP, 7000).

defaults_are_those_of_the_app_file_test() ->
    {ok, [{application, quic_dist, Props}]} =
        file:consult(filename:join(filename:dirname(code:which(quic_dist_opts)),
                                   "quic_dist.app")),
    {env, Env} = lists:keyfind(env, 1, Props),
    {ok, Limits} = quic_dist_opts:limits([], ?SETUP),
    ?assertEqual(lists:sort(Env),
                 lists:sort(maps:to_list(maps:remove(handshake_timeout,
                                                     Limits)))).

handshake_timeout_follows_net_setuptime_test() ->
    {ok, #{handshake_timeout := T}} = quic_dist_opts:limits([], 1234),
    ?assertEqual(1234, T).

a_value_is_taken_test() ->
    {ok, Limits} = quic_dist_opts:limits([{max_connections, 300},
                                          {path_mtu_discovery, false},
                                          {congestion_control, bbr2},
                                          {handshake_timeout, 500}], ?SETUP),
    ?assertMatch(#{max_connections := 300, path_mtu_discovery := false,
                   congestion_control := bbr2,
                   handshake_timeout := 500}, Limits).

bad_values_test_() ->
    [?_assertEqual({error, {bad_option, Name, Value}},
                   quic_dist_opts:limits([{Name, Value}], ?SETUP))
     || {Name, Value} <- [{max_udp_payload, 1199},
                          {max_udp_payload, 16384},
                          {max_udp_payload, 1500.0},
                          {path_mtu_discovery, 1},
                          {congestion_control, vegas},
                          {congestion_control, "bbr2"},
                          {send_queue_high, "4 MiB"},
                          {send_queue_low, -1},
                          {receive_budget, 0},
                          {stream_window, 1 bsl 32},
                          {connection_window, undefined},
                          {max_frame, 65536},
                          {max_connections, 0},
                          {max_half_open, 0},
                          {retry_threshold, -1},
                          {max_half_open_per_address, 0},
                          {handshake_timeout, 0},
                          {idle_timeout, -1},
                          {no_such_option, 1}]].

pairs_must_be_in_order_test_() ->
    [?_assertEqual({error, {bad_option, Low, LowValue}},
                   quic_dist_opts:limits([{Low, LowValue}, {High, HighValue}],
                                         ?SETUP))
     || {Low, LowValue, High, HighValue}
            <- [{send_queue_low, 100001, send_queue_high, 100000},
                {stream_window, 100001, connection_window, 100000},
                {max_half_open, 11, max_connections, 10}]].

ports_test_() ->
    Bad = fun(Name, Value) -> {error, {bad_option, Name, Value}} end,
    [?_assertEqual({ok, {0, 0}}, quic_dist_opts:ports(undefined, undefined)),
     ?_assertEqual({ok, {0, 0}}, quic_dist_opts:ports(undefined, {ok, 9})),
     ?_assertEqual({ok, {9, 9}}, quic_dist_opts:ports({ok, 9}, undefined)),
     ?_assertEqual({ok, {9, 11}}, quic_dist_opts:ports({ok, 9}, {ok, 11})),
     ?_assertEqual(Bad(inet_dist_listen_min, x),
                   quic_dist_opts:ports({ok, x}, undefined)),
     ?_assertEqual(Bad(inet_dist_listen_min, 65536),
                   quic_dist_opts:ports({ok, 65536}, undefined)),
     ?_assertEqual(Bad(inet_dist_listen_max, 8),
                   quic_dist_opts:ports({ok, 9}, {ok, 8})),
     ?_assertEqual(Bad(inet_dist_listen_max, 65536),
                   quic_dist_opts:ports({ok, 9}, {ok, 65536}))].

interface_test_() ->
    V4 = {127, 0, 0, 1},
    V6 = {0, 0, 0, 0, 0, 0, 0, 1},
    Bad = fun(Value) -> {error, {bad_option, inet_dist_use_interface, Value}} end,
    [?_assertEqual({ok, {0, 0, 0, 0}}, quic_dist_opts:interface(inet, undefined)),
     ?_assertEqual({ok, {0, 0, 0, 0, 0, 0, 0, 0}},
                   quic_dist_opts:interface(inet6, undefined)),
     ?_assertEqual({ok, V4}, quic_dist_opts:interface(inet, {ok, V4})),
     ?_assertEqual({ok, V6}, quic_dist_opts:interface(inet6, {ok, V6})),
     ?_assertEqual(Bad(V6), quic_dist_opts:interface(inet, {ok, V6})),
     ?_assertEqual(Bad(V4), quic_dist_opts:interface(inet6, {ok, V4})),
     ?_assertEqual(Bad("eth0"), quic_dist_opts:interface(inet, {ok, "eth0"}))].

environment_is_read_without_loading_first_test() ->
    _ = application:unload(quic_dist),
    ?assertMatch({ok, #{max_frame := 1073741824}}, quic_dist_opts:limits()),
    ok = application:set_env(quic_dist, max_frame, 200000),
    ?assertMatch({ok, #{max_frame := 200000}}, quic_dist_opts:limits()),
    ok = application:set_env(quic_dist, max_frame, 1),
    ?assertEqual({error, {bad_option, max_frame, 1}}, quic_dist_opts:limits()),
    ok = application:unload(quic_dist).
