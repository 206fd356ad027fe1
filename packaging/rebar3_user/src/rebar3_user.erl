%% @doc What two nodes of a project that depends on quic_dist do.
-module(rebar3_user).

-export([check/1]).

%% @doc Connects to Peer, works with it, stops it, and halts with status 0.
-spec check([atom()]) -> no_return().
check([Peer]) ->
    pong = ping(Peer, 100),
    Peer = erpc:call(Peer, erlang, node, []),
    Size = 3000000,
    Size = erpc:call(Peer, erlang, byte_size, [rand:bytes(Size)]),
    #{connections := [#{node := Peer, verified := cookie}]} = quic_dist:info(),
    ok = erpc:call(Peer, init, stop, []),
    io:format("connected to ~s over QUIC~n", [Peer]),
    halt(0).

ping(Peer, Tries) ->
    case net_adm:ping(Peer) of
        pang when Tries > 0 -> timer:sleep(100), ping(Peer, Tries - 1);
        Answer -> Answer
    end.
