%% @doc What a node that was on `erlang_quic' has in its configuration besides
%% its certificates: the environment of the application `quic', and flags.
%%
%% Works inside `listen/2', at early boot, and with no such application there.
-module(quic_dist_of_quic).

-export([env/2, options/0, port/0, passed_over/0]).

%% -quic_dist_ and these.
-define(KNOWN, ["allow", "opt", "optfile", "port"]).

%% @doc A parameter of the application. It need not be there: what sys.config
%% says of it can be read when something of its name is loaded.
-spec env(atom(), term()) -> term().
env(Name, Default) ->
    Loaded = application:load(case code:where_is_file("quic.app") of
                                  non_existing -> {application, quic,
                                                   [{vsn, "0"}]};
                                  _ -> quic
                              end),
    Value = application:get_env(quic, Name, Default),
    _ = [application:unload(quic) || Loaded =:= ok],
    Value.

%% @doc Its options of distribution.
-spec options() -> {ok, [{term(), term()}]} | error.
options() ->
    case env(dist, []) of
        #{} = Map -> {ok, maps:to_list(Map)};
        List when length(List) >= 0 -> {ok, [Pair || {_, _} = Pair <- List]};
        _ -> error
    end.

%% @doc The port to listen on; 0: any.
-spec port() -> {ok, inet:port_number()} | {error, quic_dist_opts:bad_option()}.
port() ->
    {Name, Value} = case init:get_argument(quic_dist_port) of
                        {ok, Values} -> {quic_dist_port, number(lists:last(Values))};
                        error -> {dist_port, env(dist_port, 0)}
                    end,
    case Value of
        _ when is_integer(Value), Value >= 0, Value =< 65535 -> {ok, Value};
        _ -> {error, {bad_option, Name, Value}}
    end.

number([Text]) ->
    try list_to_integer(Text) catch error:badarg -> Text end;
number(Texts) ->
    Texts.

%% @doc What has no meaning here: names of options, and flags.
-spec passed_over() -> [string()].
passed_over() ->
    Options = case options() of
                  {ok, Pairs} -> [Name || {Name, _} <- Pairs, is_atom(Name)];
                  error -> []
              end,
    Taken = quic_dist_trust:side_names(),
    Known = ?KNOWN ++ [atom_to_list(Flag) || Flag <- quic_dist_trust:flags()],
    Flags = ["-quic_dist_" ++ Name
             || {Flag, _} <- init:get_arguments(),
                "quic_dist_" ++ Name <- [atom_to_list(Flag)],
                not lists:member(Name, Known)],
    lists:usort([atom_to_list(Name) || Name <- Options,
                                       not lists:member(Name, Taken)] ++ Flags).
