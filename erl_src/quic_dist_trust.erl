%% @doc How this node proves who it is, and whom it believes: the options of
%% trust, from wherever they were given, and the identity made from them.
%%
%% Without any, the cookie is the trust. With `certfile' and `cacertfile' the
%% operator's certificates are. `{verify, verify_none}' is no trust at all, and
%% is logged whenever it is used. docs/security.md says what each protects
%% against.
%%
%% From the first to the last, later ones win: the environment `dist' of the
%% application `quic' (`erlang_quic'); the environment of `quic_dist', for both
%% roles or in `{server, Options}' and `{client, Options}'; `-quic_dist_optfile
%% File'; `-quic_dist_opt server_certfile File ...'; `-quic_dist_cert File' and
%% the like. `-ssl_dist_optfile' and `-ssl_dist_opt' count where none of these
%% says anything.
%%
%% Works inside `listen/2', at early boot: no file server, nothing loaded.
-module(quic_dist_trust).

-export([read/0, merge/1, names/0, side_names/0, flags/0,
         identity/3, forget/1, stamp/1, is_weak/1, allow/0, allows/2,
         says_it_is/1]).

-export_type([trust/0, side/0, allow/0]).

-type side() :: #{depth := non_neg_integer(),
                  verify := verify_peer | verify_none,
                  certfile => binary(), keyfile => binary(),
                  password => fun(() -> binary()),
                  cacertfile => binary(), crlfile => binary(),
                  crl_check => boolean()}.
-type allow() :: all | [binary()].
-type trust() :: #{by := cookie | files,
                   client := side(), server := side(),
                   %% where the options stand
                   optfiles := [binary()]}.
-type option() :: {client | server | both, atom(), term()}.

-include_lib("kernel/include/file.hrl").

%% dist.hrl
-define(DFLAG_NAME_ME, (16#2 bsl 32)).

%% TLS options of OTP's, in an option file, that have nothing to say to QUIC or
%% are as strict as can be here.
-define(OF_TLS, [fail_if_no_peer_cert, secure_renegotiate, client_renegotiation,
                 reuse_session, reuse_sessions, versions, ciphers,
                 honor_cipher_order, honor_ecc_order, hibernate_after,
                 log_level, log_alert, signature_algs, signature_algs_cert,
                 eccs, supported_groups, ktls, dh, dhfile,
                 server_name_indication, session_tickets, nodelay,
                 max_handshake_size]).
%% What `erlang_quic' takes for authentication and this does not: to leave it
%% out without a word would be to let in whom it kept out.
-define(NOT_HERE, [psks, psk_callback, external_psk, auth_callback, cert, key]).

%% -quic_dist_ and these.
-define(FLAGS, [{cert, certfile}, {certfile, certfile},
                {key, keyfile}, {keyfile, keyfile},
                {cacert, cacertfile}, {cacertfile, cacertfile},
                {verify, verify}]).

%%% Reading

%% @doc The environment's names that are about trust.
-spec names() -> [atom()].
names() ->
    [allow, server, client | side_names()].

%% @doc What `-quic_dist_' may be followed by, about trust.
-spec flags() -> [atom()].
flags() ->
    [Flag || {Flag, _} <- ?FLAGS].

%% @doc Names of options that are about one role, or both.
-spec side_names() -> [atom()].
side_names() ->
    [certfile, cert_file, keyfile, key_file, password, cacertfile, cacert_file,
     verify, depth, crlfile, crl_file, crl_check].

%% @doc What has been configured.
-spec read() -> {ok, trust()} | {error, quic_dist_opts:bad_option()
                                      | {identity, binary()}}.
read() ->
    case allow() of
        {ok, _} -> read_trust();
        {error, _} = Error -> Error
    end.

read_trust() ->
    try
        {Files, OfFiles} = optfiles(quic_dist_optfile),
        case {of_quic() ++ of_quic_dist() ++ OfFiles
              ++ of_args(quic_dist_opt) ++ of_flags(), Files} of
            {[], []} ->
                {SslFiles, OfSslFiles} = optfiles(ssl_dist_optfile),
                with_files(SslFiles, merge(OfSslFiles ++ of_args(ssl_dist_opt)));
            {Options, _} ->
                with_files(Files, merge(Options))
        end
    catch
        throw:{error, _} = Error -> Error
    end.

with_files(Files, {ok, Trust}) -> {ok, Trust#{optfiles := Files}};
with_files(_Files, {error, _} = Error) -> Error.

%% @doc The same, of given options, the later ones winning.
-spec merge([option()]) -> {ok, trust()} | {error, quic_dist_opts:bad_option()}.
merge(Options) ->
    try
        Client = side(client, Options),
        Server = side(server, Options),
        By = by(Client, Server),
        {ok, #{by => By, client => Client, server => Server, optfiles => []}}
    catch
        throw:{error, _} = Error -> Error
    end.

side(Role, Options) ->
    lists:foldl(fun({R, Name, Value}, Side) when R =:= Role; R =:= both ->
                        option(plain(Name), Value, Side);
                   (_, Side) ->
                        Side
                end, #{verify => verify_peer, depth => 10}, Options).

plain(cert_file) -> certfile;
plain(key_file) -> keyfile;
plain(cacert_file) -> cacertfile;
plain(crl_file) -> crlfile;
plain(Name) -> Name.

option(Name, Value, Side) when Name =:= certfile; Name =:= keyfile;
                               Name =:= cacertfile; Name =:= crlfile ->
    Side#{Name => path(Name, Value)};
%% As a fun, so that what prints this does not print it.
option(password, Value, Side) ->
    Password = case Value of
                   _ when is_function(Value, 0) -> fun() -> text(Value()) end;
                   _ -> Text = text(Value), fun() -> Text end
               end,
    Side#{password => Password};
option(verify, Value, Side) when Value =:= verify_peer; Value =:= verify_none ->
    Side#{verify := Value};
option(verify, "verify_peer", Side) ->
    Side#{verify := verify_peer};
option(verify, "verify_none", Side) ->
    Side#{verify := verify_none};
option(depth, Value, Side) when is_integer(Value), Value >= 0, Value =< 100 ->
    Side#{depth := Value};
option(crl_check, Value, Side) when is_boolean(Value); Value =:= peer ->
    Side#{crl_check => Value};
option(Name, Value, _Side) ->
    bad(Name, Value).

path(Name, Value) ->
    try unicode:characters_to_binary(Value) of
        Path when is_binary(Path), Path =/= <<>> -> Path;
        _ -> bad(Name, Value)
    catch
        error:badarg -> bad(Name, Value)
    end.

text(Value) ->
    try
        Text = unicode:characters_to_binary(Value),
        true = is_binary(Text),
        Text
    catch
        %% The value is not for the log.
        error:_ -> bad(password, '...')
    end.

-spec bad(atom(), term()) -> no_return().
bad(Name, Value) ->
    throw({error, {bad_option, Name, Value}}).

%% A server has to show something; who is verified needs authorities.
by(#{verify := Verify} = Client, #{verify := Verify} = Server)
  when not is_map_key(certfile, Client), not is_map_key(certfile, Server) ->
    case [Name || Name <- [keyfile, cacertfile, crlfile],
                  is_map_key(Name, Client) orelse is_map_key(Name, Server)] of
        [] -> cookie;
        _ -> bad(certfile, undefined)
    end;
by(_Client, Server) when not is_map_key(certfile, Server) ->
    bad(certfile, undefined);
by(Client, Server) ->
    _ = [bad(cacertfile, undefined)
         || #{verify := verify_peer} = Side <- [Client, Server],
            not is_map_key(cacertfile, Side)],
    _ = [bad(crlfile, undefined)
         || #{verify := verify_peer, crl_check := Check} = Side <- [Client, Server],
            Check =/= false, not is_map_key(crlfile, Side)],
    files.

%%% Where options stand

of_quic_dist() ->
    _ = application:load(quic_dist),
    lists:append([of_role(Name, Value)
                  || {Name, Value} <- application:get_all_env(quic_dist),
                     Name =/= allow, lists:member(Name, names())]).

of_role(Role, Options) when Role =:= server; Role =:= client ->
    is_list(Options) orelse bad(Role, '...'),
    [case Option of
         {Name, Value} when is_atom(Name) -> {Role, Name, Value};
         _ -> bad(Role, '...')
     end || Option <- Options, not is_of_tls(Option)];
of_role(Name, Value) ->
    [{both, Name, Value}].

is_of_tls({Name, _}) -> lists:member(Name, ?OF_TLS);
is_of_tls(_) -> false.

of_quic() ->
    case quic_dist_of_quic:options() of
        {ok, Options} -> lists:append([quic_option(Name, Value)
                                       || {Name, Value} <- Options,
                                          Value =/= undefined]);
        error -> bad(dist, '...')
    end.

quic_option(Name, Value) ->
    case {lists:member(Name, side_names()), lists:member(Name, ?NOT_HERE)} of
        {true, _} -> [{both, Name, Value}];
        {_, true} -> bad(Name, '...');
        _ -> []
    end.

%% Of `erlang_quic', and more of the kind: `-quic_dist_cert File'.
of_flags() ->
    _ = [bad(Name, '...') || Name <- ?NOT_HERE -- flags(),
                             init:get_argument(flag(Name)) =/= error],
    lists:append([flag(flag(Flag), Name) || {Flag, Name} <- ?FLAGS]).

flag(Name) ->
    list_to_atom("quic_dist_" ++ atom_to_list(Name)).

flag(Flag, Name) ->
    case init:get_argument(Flag) of
        {ok, Values} ->
            case lists:last(Values) of
                [Value] -> [{both, Name, Value}];
                _ -> bad(Flag, Values)
            end;
        error ->
            []
    end.

%% `-ssl_dist_opt server_certfile File client_certfile File'
of_args(Flag) ->
    case init:get_argument(Flag) of
        {ok, Values} -> args(Flag, lists:append(Values));
        error -> []
    end.

args(Flag, [Name, Value | Rest]) ->
    Option = case Name of
                 "server_" ++ Of -> arg(server, Of, Value);
                 "client_" ++ Of -> arg(client, Of, Value);
                 _ -> bad(Flag, Name)
             end,
    [O || O <- [Option], not is_of_tls({element(2, O), Value})]
        ++ args(Flag, Rest);
args(_Flag, []) ->
    [];
args(Flag, Odd) ->
    bad(Flag, Odd).

arg(Role, Name, Value) ->
    case [Known || Known <- side_names() ++ ?OF_TLS,
                   atom_to_list(Known) =:= Name] of
        [depth] -> {Role, depth, number(Value)};
        [crl_check] -> {Role, crl_check, bool(Value)};
        [Known] -> {Role, Known, Value};
        [] -> bad(Role, Name)
    end.

number(Value) ->
    try list_to_integer(Value) catch error:badarg -> Value end.

bool("true") -> true;
bool("false") -> false;
bool("peer") -> peer;
bool(Value) -> Value.

optfiles(Flag) ->
    case init:get_argument(Flag) of
        {ok, Values} ->
            Files = [path(Flag, Value) || Value <- lists:append(Values)],
            {Files, lists:append([optfile(File) || File <- Files])};
        error ->
            {[], []}
    end.

optfile(File) ->
    Terms = case prim_file:read_file(File) of
                {ok, Text} -> parse(File, Text);
                {error, Reason} -> unreadable(File, atom_to_list(Reason))
            end,
    lists:append([case Term of
                      {Role, Options} when Role =:= server; Role =:= client ->
                          of_role(Role, Options);
                      _ ->
                          unreadable(File, "not [{server, _}, {client, _}]")
                  end || Term <- Terms]).

parse(File, Text) ->
    maybe_term(File, erl_scan:string(unicode:characters_to_list(Text))).

maybe_term(File, {ok, Tokens, _}) ->
    case erl_parse:parse_term(Tokens) of
        {ok, Terms} when is_list(Terms) -> Terms;
        _ -> unreadable(File, "not an Erlang term")
    end;
maybe_term(File, _) ->
    unreadable(File, "not an Erlang term").

-spec unreadable(binary(), string()) -> no_return().
unreadable(File, Why) ->
    Text = unicode:characters_to_binary([File, ": ", Why]),
    throw({error, {identity, Text}}).

%%% The identity

%% @doc What the identity depends on besides the cookie and the node's name: it
%% differs when one of the files has been written or replaced.
-spec stamp(trust()) -> term().
stamp(#{client := Client, server := Server, optfiles := OptFiles}) ->
    Files = OptFiles ++ [File || Side <- [Client, Server],
                                 Name <- [certfile, keyfile, cacertfile, crlfile],
                                 {ok, File} <- [maps:find(Name, Side)]],
    [case prim_file:read_file_info(File, [{time, posix}]) of
         {ok, #file_info{size = Size, mtime = Written, ctime = Changed,
                         inode = Inode}} ->
             {Size, Written, Changed, Inode};
         {error, Reason} ->
             Reason
     end || File <- lists:usort(Files)].

%% @doc Makes it; with what an operator should know about it.
-spec identity(trust(), Cookie :: fun(() -> {ok, binary()} | {error, no_cookie}),
               Name :: binary()) ->
          {ok, quic_dist_nif:identity(), [unicode:chardata()]}
        | {error, term()}.
identity(#{by := cookie, client := #{verify := Verify}}, Cookie, Name) ->
    case Cookie() of
        {ok, Text} ->
            case quic_dist_nif:identity_new(Text, Name,
                                            Verify =:= verify_none) of
                {ok, Identity} when Verify =:= verify_none ->
                    {ok, Identity, [no_verification()]};
                {ok, Identity} ->
                    {ok, Identity, weakness(Text)};
                {error, _} = Error ->
                    Error
            end;
        {error, _} = Error ->
            Error
    end;
identity(#{by := files, client := Client, server := Server}, Cookie, Name) ->
    case Cookie() of
        {ok, Text} ->
            case quic_dist_nif:identity_files(Text, Name, files(Client),
                                              files(Server)) of
                {ok, Identity, Complaints} ->
                    {ok, Identity, [no_verification()
                                    || lists:member(verify_none,
                                                    [maps:get(verify, Client),
                                                     maps:get(verify, Server)])]
                     ++ Complaints};
                {error, _} = Error ->
                    Error
            end;
        {error, _} = Error ->
            Error
    end.

%% @doc The same without passwords: what is needed once the identity is made.
-spec forget(trust()) -> trust().
forget(#{client := Client, server := Server} = Trust) ->
    Trust#{client := maps:remove(password, Client),
           server := maps:remove(password, Server)}.

no_verification() ->
    "verify_none: nodes are not verified, and anybody on the way can read and "
        "change what they say".

files(#{verify := verify_none} = Side) ->
    files(maps:without([cacertfile, crlfile, verify], Side));
files(Side) ->
    maps:fold(fun(password, Password, Files) ->
                      Files#{password => Password()};
                 (crl_check, false, Files) ->
                      maps:remove(crlfile, Files);
                 (crl_check, Check, Files) ->
                      Files#{crl_check => Check =:= true};
                 (_, _, Files) ->
                      Files
              end, maps:without([verify, crl_check, password], Side), Side).

%% @doc Whether a cookie can be guessed: whoever reaches the port may try, at
%% some 0.2 s of a processor each, and what was tried for one cluster holds for
%% all. Fewer than 64 bits, if all characters of the kinds in it were equally
%% likely, or fewer than 8 different ones. Words pass: this is a floor, not a
%% proof.
-spec is_weak(binary()) -> boolean().
is_weak(Cookie) ->
    Chars = binary_to_list(Cookie),
    Kinds = lists:usort([kind(C) || C <- Chars]),
    Alphabet = lists:sum([size_of(Kind) || Kind <- Kinds]),
    length(lists:usort(Chars)) < 8
        orelse length(Chars) * math:log2(Alphabet) < 64.

kind(C) when C >= $a, C =< $z -> lower;
kind(C) when C >= $A, C =< $Z -> upper;
kind(C) when C >= $0, C =< $9 -> digit;
kind(_) -> other.

size_of(lower) -> 26;
size_of(upper) -> 26;
size_of(digit) -> 10;
size_of(other) -> 32.

weakness(<<"nocookie">>) ->
    ["the cookie is 'nocookie': anybody who reaches this node can join it"];
weakness(Cookie) ->
    ["the cookie is weak: whoever reaches this node's port can guess it; make "
     "it 20 random characters or more" || is_weak(Cookie)].

%%% Whom to let in

%% @doc The nodes (`name@host') and hosts that may connect, either way:
%% `-quic_dist_allow' or `{allow, List}' in the environment.
-spec allow() -> {ok, allow()} | {error, quic_dist_opts:bad_option()}.
allow() ->
    try
        OfFlags = case init:get_argument(quic_dist_allow) of
                      {ok, Values} -> lists:append(Values);
                      error -> none
                  end,
        _ = application:load(quic_dist),
        case {OfFlags, application:get_env(quic_dist, allow)} of
            {none, undefined} -> {ok, all};
            {none, {ok, List}} when is_list(List) -> {ok, [peer(P) || P <- List]};
            {none, {ok, Bad}} -> bad(allow, Bad);
            {Names, _} -> {ok, [peer(P) || P <- Names]}
        end
    catch
        throw:{error, _} = Error -> Error
    end.

peer(Peer) when is_atom(Peer) -> atom_to_binary(Peer);
peer(Peer) -> path(allow, Peer).

%% @doc Whether a node is in the list.
-spec allows(allow(), Node :: binary()) -> boolean().
allows(all, _Node) ->
    true;
allows(Allow, Node) ->
    lists:member(Node, Allow)
        orelse case binary:split(Node, <<"@">>) of
                   [_Name, Host] -> lists:member(Host, Allow);
                   [Host] -> lists:member(Host, Allow)
               end.

%% @doc The name in the first message of the distribution handshake, by the node
%% that dials; only a host's (without `@') if it has none yet and asks for one.
-spec says_it_is(binary()) -> {ok, binary()} | {error, not_in_the_protocol}.
says_it_is(<<$N, Flags:64, _Creation:32, Length:16, Name:Length/binary,
             _/binary>>) when Flags band ?DFLAG_NAME_ME =/= 0 ->
    {ok, utf8(lists:last(binary:split(Name, <<"@">>)))};
says_it_is(<<$N, _Flags:64, _Creation:32, Length:16, Name:Length/binary,
             _/binary>>) ->
    named(Name);
says_it_is(<<$n, _Version:16, _Flags:32, Name/binary>>) ->
    named(Name);
says_it_is(_) ->
    {error, not_in_the_protocol}.

named(Name) ->
    case binary:split(Name, <<"@">>) of
        [First, Host] when First =/= <<>>, Host =/= <<>> -> {ok, utf8(Name)};
        _ -> {error, not_in_the_protocol}
    end.

%% Whatever the bytes are: dist_util makes an atom of them by list_to_atom/1.
utf8(Name) ->
    unicode:characters_to_binary(Name, latin1).
