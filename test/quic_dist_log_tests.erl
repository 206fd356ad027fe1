%% What people read of a closed connection, whatever bytes the peer sent.
-module(quic_dist_log_tests).

-include_lib("eunit/include/eunit.hrl").

words(Reason) ->
    unicode:characters_to_list(quic_dist_log:reason(Reason)).

reasons_fit_one_line_test_() ->
    [?_assertEqual(nomatch, re:run(words(Reason), "[[:cntrl:]]"))
     || Reason <- [{peer_closed, 0, <<"bye\nfor\r\never\e[31m">>},
                   {peer_closed, 7, <<0, 255, 254, "x">>},
                   {protocol_error, binary:copy(<<"long">>, 100000)},
                   {tls, <<"bad certificate\n">>},
                   {transport_error, 11, <<>>},
                   idle_timeout, handshake_timeout, owner_down, endpoint_closed,
                   {io, enetunreach}, eaddrinuse,
                   {bad_option, max_frame, 1},
                   {recv_name_failed, {ok, lists:duplicate(60000, $\n)}},
                   {recv_name_failed, {ok, lists:seq(0, 255)}},
                   {nif_not_loaded, "/p/quic_dist_nif", "no such file"}]].

peer_text_is_bounded_test() ->
    ?assert(length(words({protocol_error, binary:copy(<<"x">>, 100000)})) < 400),
    ?assert(length(words({recv_name_failed, {ok, lists:duplicate(60000, $x)}})) < 600),
    ?assert(length(words({recv_name_failed, {ok, lists:duplicate(60000, 200)}})) < 600),
    %% bytes that are no UTF-8, and a character cut in two
    ?assert(length(words({tls, binary:copy(<<255>>, 100000)})) < 2000),
    ?assert(length(words({tls, binary:copy(<<"xé"/utf8>>, 1000)})) < 2000).

text_of_the_peer_is_kept_test() ->
    ?assertEqual("TLS: naïve", words({tls, <<"naïve"/utf8>>})),
    ?assertEqual("UDP socket: network is unreachable", words({io, enetunreach})).

a_peer_that_goes_away_is_connection_closed_test() ->
    ?assertEqual(connection_closed,
                 quic_dist_log:exit_reason({peer_closed, 0, <<"halt">>})),
    ?assertEqual(connection_closed,
                 quic_dist_log:exit_reason({peer_closed, 3, <<"stopping">>})),
    ?assertEqual(idle_timeout, quic_dist_log:exit_reason(idle_timeout)).

peer_test() ->
    ?assertEqual("127.0.0.1:80", quic_dist_log:peer({{127, 0, 0, 1}, 80})),
    ?assertEqual("[::1]:80", quic_dist_log:peer({{0, 0, 0, 0, 0, 0, 0, 1}, 80})).
