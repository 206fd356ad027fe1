%% @doc Where a node is: asked when it is dialled, and again when nothing is
%% heard from it.
%%
%% It is the EPMD module that knows (`-epmd_module', OTP's by default): a host's
%% address is the resolver's affair there, a node's port EPMD's.
-module(quic_dist_discovery).

-export([has_address/3, find/3, seek/5, epmd/2]).

-type family() :: quic_dist_opts:family().

%% How many addresses of a host are tried, in turn, when a node is silent.
-define(MAX_ADDRESSES, 4).
%% How long EPMD may take to answer then: its host may be as silent, and the next
%% asking is a second later (src/connection/search.rs), perhaps of another host.
-define(EPMD_MS, 900).

%% @doc Whether a node's host has an address of the family.
-spec has_address(family(), string(), string()) -> boolean().
has_address(Family, Name, Host) ->
    case epmd(address_please, [Name, Host, Family]) of
        {ok, _Ip} -> true;
        {ok, _Ip, _Port, _Version} -> true;
        _ -> false
    end.

%% @doc Where a node is, and the version of the distribution it is known by.
-spec find(family(), string(), string()) ->
          {ok, quic_dist_nif:peer(), term()} | error.
find(Family, Name, Host) ->
    case epmd(address_please, [Name, Host, Family]) of
        {ok, Ip, Port, Version} ->
            {ok, {Ip, Port}, Version};
        {ok, Ip} ->
            case epmd(port_please, [Name, Ip]) of
                {port, Port, Version} -> {ok, {Ip, Port}, Version};
                _ -> error
            end;
        _ ->
            error
    end.

%% @doc Asks, in a process of its own, where a node is that is silent at `Peer',
%% and has its connection look there, if that is somewhere else. A host may have
%% several addresses: each asking takes the next. The caller gets a `DOWN'.
-spec seek(quic_dist_nif:connection(), family(), node(), quic_dist_nif:peer(),
           Asked :: non_neg_integer()) -> {pid(), reference()}.
seek(Conn, Family, Node, Peer, Asked) ->
    spawn_monitor(fun() -> seek_once(Conn, Family, Node, Peer, Asked) end).

seek_once(Conn, Family, Node, Peer, Asked) ->
    {node, Name, Host} = dist_util:split_node(Node),
    case said(Family, Name, Host, Peer, Asked) of
        {ok, Peer} ->
            ok;
        {ok, Said} ->
            quic_dist_log:sought(Node, Peer, Said),
            %% When it fails, the connection has ended.
            _ = quic_dist_nif:seek(Conn, Said),
            ok;
        error ->
            ok
    end.

said(Family, Name, Host, {Known, _}, Asked) ->
    case epmd(address_please, [Name, Host, Family]) of
        {ok, Ip, Port, _Version} ->
            {ok, {Ip, Port}};
        {ok, Ip} ->
            Ips = in_turn(Ip, Known, Family, Host),
            This = lists:nth(Asked rem length(Ips) + 1, Ips),
            case port(Name, This) of
                {port, Port, _Version} -> {ok, {This, Port}};
                _ -> error
            end;
        _ ->
            error
    end.

%% The address at which it is silent is the last.
in_turn(Ip, Known, Family, Host) ->
    More = case inet:getaddrs(Host, Family) of
               {ok, All} -> All -- [Ip];
               {error, _} -> []
           end,
    {Same, Others} = lists:partition(fun(This) -> This =:= Known end, [Ip | More]),
    lists:sublist(Others ++ Same, ?MAX_ADDRESSES).

port(Name, Ip) ->
    Module = net_kernel:epmd_module(),
    case erlang:function_exported(Module, port_please, 3) of
        true -> Module:port_please(Name, Ip, ?EPMD_MS);
        false -> epmd(port_please, [Name, Ip])
    end.

%% @doc Asks the EPMD module. One of the user's need not have all functions of
%% OTP's.
-spec epmd(atom(), [term()]) -> term().
epmd(Function, Args) ->
    Module = net_kernel:epmd_module(),
    case erlang:function_exported(Module, Function, length(Args)) of
        true -> apply(Module, Function, Args);
        false -> apply(erl_epmd, Function, Args)
    end.
