%% Carriers by name: inet_tcp, inet_tls, quic, quic:EBIN (another build of quic_dist), each quic one with any number of +KEY=VALUE
%% (`-quic_dist KEY VALUE'). The name `ceiling' stands for the engine alone, without nodes; it may have a +max_udp_payload.
-module(quic_dist_bench_carrier).

-export([parse/1, args/1, label/1, is_quic/1, ceiling/1, is_ceiling/1, with/2, options/1, plain/1, congestion_control/0]).

-export_type([carrier/0, option/0]).

-type option() :: {Key :: string(), Value :: string()}.
-type carrier() :: #{base := inet_tcp | inet_tls | quic | ceiling, ebin => string(), options := [option()]}.

-spec parse(string()) -> {ok, carrier()} | error.
parse("inet_tcp") -> {ok, #{base => inet_tcp, options => []}};
parse("inet_tls") -> {ok, #{base => inet_tls, options => []}};
parse("ceiling" ++ Rest) ->
    case string:split(Rest, "+", all) of
        ["" | Options] -> parse_options(Options, ceiling([]));
        _ -> error
    end;
parse("quic" ++ Rest) ->
    case string:split(Rest, "+", all) of
        ["" | Options] -> parse_options(Options, #{base => quic});
        [":" ++ Ebin | Options] -> parse_options(Options, #{base => quic, ebin => Ebin});
        _ -> error
    end;
parse(_) -> error.

parse_options(Texts, Carrier) ->
    Options = [string:split(Text, "=") || Text <- Texts],
    case lists:all(fun(Option) -> length(Option) =:= 2 end, Options) of
        true -> {ok, Carrier#{options => [{Key, Value} || [Key, Value] <- Options]}};
        false -> error
    end.

%% The engine alone.
-spec ceiling([option()]) -> carrier().
ceiling(Options) -> #{base => ceiling, options => Options}.

%% The same carrier with more options.
-spec with(carrier(), [option()]) -> carrier().
with(#{options := Options} = Carrier, More) ->
    Carrier#{options := lists:foldl(fun({Key, _} = Option, Acc) -> lists:keystore(Key, 1, Acc, Option) end, Options, More)}.

-spec options(carrier()) -> [option()].
options(#{options := Options}) -> Options.

-spec is_quic(carrier()) -> boolean().
is_quic(#{base := Base}) -> Base =:= quic.

-spec is_ceiling(carrier()) -> boolean().
is_ceiling(#{base := Base}) -> Base =:= ceiling.

%% Without options.
-spec plain(carrier()) -> carrier().
plain(Carrier) -> Carrier#{options := []}.

-spec label(carrier()) -> string().
label(#{base := Base, options := Options} = Carrier) ->
    lists:flatten([atom_to_list(Base), [[":", Ebin] || #{ebin := Ebin} <- [Carrier]],
                   [["+", Key, "=", Value] || {Key, Value} <- Options]]).

%% Arguments of `erl'.
-spec args(carrier()) -> [string()].
args(#{base := inet_tcp}) ->
    ["-proto_dist", "inet_tcp" | tcp_args()];
args(#{base := inet_tls}) ->
    ["-proto_dist", "inet_tls", "-ssl_dist_optfile", filename:join(os:getenv("QUIC_DIST_BENCH_WORK"), "tls.conf") | tcp_args()];
args(#{base := quic, options := Options} = Carrier) ->
    Ebin = maps:get(ebin, Carrier, os:getenv("QUIC_DIST_BENCH_EBIN")),
    ["-proto_dist", "quic", "-pa", filename:absname(Ebin)]
        ++ lists:append([["-quic_dist", Key, Value] || {Key, Value} <- Options]).

%%% TCP's congestion control: Linux' default, whatever this machine has. BBR paces, and slows TCP down on loopback.

-define(WANTED, <<"cubic">>).
%% IPPROTO_TCP, TCP_CONGESTION.
-define(CONGESTION(Value), {raw, 6, 13, Value}).

tcp_args() ->
    case congestion_control() of
        {set, Name, _} ->
            Options = lists:flatten(io_lib:format("[~p]", [?CONGESTION(Name)])),
            ["-kernel", "inet_dist_listen_options", Options, "-kernel", "inet_dist_connect_options", Options];
        {left, _} ->
            []
    end.

%% What the nodes' connections have, and what they would have otherwise. Who is not root may choose what the machine allows.
-spec congestion_control() -> {set, Name :: binary(), Otherwise :: binary()} | {left, Name :: binary()}.
congestion_control() ->
    {ok, Socket} = gen_tcp:listen(0, []),
    try {congestion_control(Socket), inet:setopts(Socket, [?CONGESTION(?WANTED)]), congestion_control(Socket)} of
        {Otherwise, ok, ?WANTED} -> {set, ?WANTED, Otherwise};
        {Otherwise, _, _} -> {left, Otherwise}
    after gen_tcp:close(Socket)
    end.

congestion_control(Socket) ->
    case inet:getopts(Socket, [?CONGESTION(16)]) of
        {ok, [?CONGESTION(Name)]} -> hd(binary:split(Name, <<0>>));
        _ -> <<"an unknown congestion control">>
    end.
