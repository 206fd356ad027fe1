%% @doc Reads and checks what the user has configured: the environment of
%% `quic_dist', and the parameters of `kernel' that a carrier has to honour.
%%
%% Works inside `listen/2', at early boot, when no application but kernel has
%% been loaded yet.
-module(quic_dist_opts).

-export([limits/0, limits/2, ports/0, ports/2, interface/1, interface/2]).

-export_type([limits/0, bad_option/0, family/0]).

-type family() :: inet | inet6.
-type bad_option() :: {bad_option, Name :: atom(), Value :: term()}.
-type limits() :: #{max_udp_payload := 1200..16383,
                    path_mtu_discovery := boolean(),
                    congestion_control := cubic | reno | bbr2,
                    data_streams := 1..16,
                    send_queue_high := pos_integer(),
                    send_queue_low := non_neg_integer(),
                    receive_budget := pos_integer(),
                    stream_window := pos_integer(),
                    connection_window := pos_integer(),
                    user_streams := non_neg_integer(),
                    user_stream_window := pos_integer(),
                    user_stream_queue := pos_integer(),
                    datagram_queue := pos_integer(),
                    max_frame := pos_integer(),
                    max_connections := pos_integer(),
                    max_half_open := pos_integer(),
                    retry_threshold := non_neg_integer(),
                    max_half_open_per_address := pos_integer(),
                    handshake_timeout := pos_integer(),
                    session_lifetime := 0..172800,
                    idle_timeout := non_neg_integer(),
                    busy_wait := 0..1000}.

-define(MAX_BYTES, 16#7fffffff).

%% @doc The limits of an endpoint and its connections.
-spec limits() -> {ok, limits()} | {error, bad_option()}.
limits() ->
    limits(env(), net_kernel:connecttime()).

%% @doc The same, of a given environment and `net_setuptime' (milliseconds).
-spec limits([{atom(), term()}], pos_integer()) ->
          {ok, limits()} | {error, bad_option()}.
limits(Env, SetupTime) ->
    Known = table(SetupTime),
    try
        lists:foreach(fun({Name, Value}) ->
                              lists:keymember(Name, 1, Known)
                                  orelse lists:member(Name, quic_dist_trust:names())
                                  orelse throw({bad_option, Name, Value})
                      end, Env),
        Limits = maps:from_list([{Name, value(Name, Range, Default, Env)}
                                 || {Name, Range, Default} <- Known]),
        ok = ordered(send_queue_low, send_queue_high, Limits),
        ok = ordered(stream_window, connection_window, Limits),
        ok = ordered(user_stream_window, stream_window, Limits),
        ok = ordered(max_half_open, max_connections, Limits),
        {ok, Limits}
    catch
        throw:{bad_option, _, _} = Bad -> {error, Bad}
    end.

%% @doc The first and the last UDP port to try; `{0, 0}': any. Where `kernel' has
%% nothing to say, the port that `erlang_quic' is told.
-spec ports() -> {ok, {inet:port_number(), inet:port_number()}}
               | {error, bad_option()}.
ports() ->
    case application:get_env(kernel, inet_dist_listen_min) of
        undefined ->
            case quic_dist_of_quic:port() of
                {ok, Port} -> {ok, {Port, Port}};
                {error, _} = Error -> Error
            end;
        Min ->
            ports(Min, application:get_env(kernel, inet_dist_listen_max))
    end.

%% @doc The same, of given parameters.
-spec ports({ok, term()} | undefined, {ok, term()} | undefined) ->
          {ok, {inet:port_number(), inet:port_number()}}
        | {error, bad_option()}.
ports(undefined, _) ->
    {ok, {0, 0}};
ports({ok, Min}, _) when not (is_integer(Min) andalso Min >= 0
                              andalso Min =< 65535) ->
    {error, {bad_option, inet_dist_listen_min, Min}};
ports({ok, Min}, undefined) ->
    {ok, {Min, Min}};
ports({ok, Min}, {ok, Max}) when is_integer(Max), Max >= Min, Max =< 65535 ->
    {ok, {Min, Max}};
ports(_, {ok, Max}) ->
    {error, {bad_option, inet_dist_listen_max, Max}}.

%% @doc The address to listen on (`inet_dist_use_interface').
-spec interface(family()) -> {ok, inet:ip_address()} | {error, bad_option()}.
interface(Family) ->
    interface(Family, application:get_env(kernel, inet_dist_use_interface)).

%% @doc The same, of a given parameter.
-spec interface(family(), {ok, term()} | undefined) ->
          {ok, inet:ip_address()} | {error, bad_option()}.
interface(inet, undefined) ->
    {ok, {0, 0, 0, 0}};
interface(inet6, undefined) ->
    {ok, {0, 0, 0, 0, 0, 0, 0, 0}};
interface(Family, {ok, Ip}) ->
    IsOfFamily = case Family of
                     inet -> inet:is_ipv4_address(Ip);
                     inet6 -> inet:is_ipv6_address(Ip)
                 end,
    case IsOfFamily of
        true -> {ok, Ip};
        false -> {error, {bad_option, inet_dist_use_interface, Ip}}
    end.

%%% Internal

%% Loading makes the environment visible that -config and the command line
%% gave; it is a no-op later in the life of the node.
env() ->
    _ = application:load(quic_dist),
    [KeyVal || {Key, _} = KeyVal <- application:get_all_env(quic_dist),
               Key =/= included_applications].

%% quiche makes no packet of more than 16,383 bytes.
%% A frame holds at least one fragment of the VM (64 KiB and its header), and a
%% message that made its sender dial in one piece.
table(SetupTime) ->
    [{max_udp_payload, {1200, 16383}, 16000},
     {path_mtu_discovery, boolean, true},
     {congestion_control, [cubic, reno, bbr2], cubic},
     {data_streams, {1, 16}, 4},
     {send_queue_high, {65536, ?MAX_BYTES}, 4194304},
     {send_queue_low, {0, ?MAX_BYTES}, 524288},
     {receive_budget, {65536, ?MAX_BYTES}, 1048576},
     {stream_window, {65536, ?MAX_BYTES}, 8388608},
     {connection_window, {65536, ?MAX_BYTES}, 16777216},
     {user_streams, {0, 65536}, 1024},
     {user_stream_window, {16384, ?MAX_BYTES}, 262144},
     {user_stream_queue, {16384, ?MAX_BYTES}, 262144},
     {datagram_queue, {1, 65536}, 128},
     {max_frame, {131072, ?MAX_BYTES}, 1073741824},
     {max_connections, {1, 1000000}, 4096},
     {max_half_open, {1, 1000000}, 256},
     {retry_threshold, {0, 1000000}, 16},
     {max_half_open_per_address, {1, 1000000}, 64},
     {handshake_timeout, {1, 600000}, SetupTime},
     {session_lifetime, {0, 172800}, 86400},
     {idle_timeout, {0, 86400000}, 0},
     {busy_wait, {0, 1000}, 100}].

value(Name, Range, Default, Env) ->
    Value = proplists:get_value(Name, Env, Default),
    case Range of
        boolean when is_boolean(Value) -> Value;
        [_ | _] -> lists:member(Value, Range) orelse throw({bad_option, Name, Value}), Value;
        {Min, Max} when is_integer(Value), Value >= Min, Value =< Max -> Value;
        _ -> throw({bad_option, Name, Value})
    end.

ordered(Low, High, Limits) ->
    case Limits of
        #{Low := L, High := H} when L =< H -> ok;
        #{Low := L} -> throw({bad_option, Low, L})
    end.
