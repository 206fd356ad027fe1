%% Certificates for tests, made with public_key: authorities, chains, names, dates, encrypted keys, lists of revoked ones.
-module(quic_dist_test_ca).
-include_lib("public_key/include/public_key.hrl").

-export([authority/1, authority/2, leaf/2, revoked/2, revoked/3, write/2, pem/1, key_pem/1, key_pem/2]).

-export_type([certificate/0]).

%% A certificate with its key, and those between it and the authority (which is not in the list).
-type certificate() :: #{der := binary(), key := term(), name := string(), serial := pos_integer(), chain := [binary()]}.

%% Its own authority.
-spec authority(string()) -> certificate().
authority(Name) ->
    Key = public_key:generate_key({namedCurve, secp256r1}),
    make(Name, Key, #{name => Name, key => Key, chain => []}, [ca()], {-3600, 86400}).

%% An authority signed by another.
-spec authority(string(), certificate()) -> certificate().
authority(Name, #{chain := Chain} = Issuer) ->
    #{der := Der} = Made = make(Name, public_key:generate_key({namedCurve, secp256r1}), Issuer, [ca()], {-3600, 86400}),
    Made#{chain := [Der | Chain]}.

%% Names: {node, "a@h"}, {dns, "h"}, {ip, Ip}. Valid: seconds from now.
-spec leaf(certificate(), #{names => [term()], valid => {integer(), integer()}}) -> certificate().
leaf(Issuer, Options) ->
    Names = [general(Name) || Name <- maps:get(names, Options, [])],
    Usage = #'Extension'{extnID = ?'id-ce-extKeyUsage', critical = false, extnValue = [?'id-kp-serverAuth', ?'id-kp-clientAuth']},
    Alternative = [#'Extension'{extnID = ?'id-ce-subjectAltName', critical = false, extnValue = Names} || Names =/= []],
    make("leaf", public_key:generate_key({namedCurve, secp256r1}), Issuer, [Usage | Alternative], maps:get(valid, Options, {-3600, 86400})).

general({node, Node}) -> {uniformResourceIdentifier, "erlang://" ++ string:replace(Node, "@", "%40")};
general({dns, Name}) -> {dNSName, Name};
general({ip, Ip}) -> {iPAddress, list_to_binary(tuple_to_list(Ip))}.

ca() ->
    #'Extension'{extnID = ?'id-ce-basicConstraints', critical = true, extnValue = #'BasicConstraints'{cA = true}}.

make(Name, #'ECPrivateKey'{publicKey = Public} = Key, #{name := Issuer, key := IssuerKey, chain := Chain}, Extensions, {From, To}) ->
    Serial = rand:uniform(1 bsl 60),
    Flat = [case E of
                #'Extension'{extnID = ?'id-ce-subjectAltName', extnValue = V} ->
                    E#'Extension'{extnValue = [flat(G) || G <- V]};
                _ -> E
            end || E <- Extensions],
    Tbs = #'OTPTBSCertificate'{
        version = v3, serialNumber = Serial,
        signature = #'SignatureAlgorithm'{algorithm = ?'ecdsa-with-SHA256', parameters = asn1_NOVALUE},
        issuer = rdn(Issuer), subject = rdn(Name),
        validity = #'Validity'{notBefore = time(From), notAfter = time(To)},
        subjectPublicKeyInfo = #'OTPSubjectPublicKeyInfo'{
            algorithm = #'PublicKeyAlgorithm'{algorithm = ?'id-ecPublicKey', parameters = {namedCurve, ?secp256r1}},
            subjectPublicKey = #'ECPoint'{point = Public}},
        extensions = Flat},
    #{der => public_key:pkix_sign(Tbs, IssuerKey), key => Key, name => Name, serial => Serial, chain => Chain}.

flat({uniformResourceIdentifier, Uri}) -> {uniformResourceIdentifier, lists:flatten(Uri)};
flat(Other) -> Other.

rdn(Name) ->
    {rdnSequence, [[#'AttributeTypeAndValue'{type = ?'id-at-commonName', value = {utf8String, list_to_binary(Name)}}]]}.

%% The authority's list of these certificates.
-spec revoked(certificate(), [certificate()]) -> binary().
revoked(Authority, Certificates) -> revoked(Authority, Certificates, 86400).

%% The list is to be replaced after so many seconds.
-spec revoked(certificate(), [certificate()], integer()) -> binary().
revoked(#{name := Name, key := Key}, Certificates, Next) ->
    Algorithm = #'AlgorithmIdentifier'{algorithm = ?'ecdsa-with-SHA256', parameters = asn1_NOVALUE},
    Issuer = {rdnSequence, [[#'AttributeTypeAndValue'{
        type = ?'id-at-commonName', value = public_key:der_encode('X520CommonName', {utf8String, list_to_binary(Name)})}]]},
    Entries = [#'TBSCertList_revokedCertificates_SEQOF'{userCertificate = Serial, revocationDate = time(-60), crlEntryExtensions = asn1_NOVALUE}
               || #{serial := Serial} <- Certificates],
    Tbs = #'TBSCertList'{
        version = v2, signature = Algorithm, issuer = Issuer, thisUpdate = time(min(-60, Next - 60)), nextUpdate = time(Next),
        revokedCertificates = case Entries of [] -> asn1_NOVALUE; _ -> Entries end, crlExtensions = asn1_NOVALUE},
    Signature = public_key:sign(public_key:der_encode('TBSCertList', Tbs), sha256, Key),
    Der = public_key:der_encode('CertificateList', #'CertificateList'{tbsCertList = Tbs, signatureAlgorithm = Algorithm, signature = Signature}),
    public_key:pem_encode([{'CertificateList', Der, not_encrypted}]).

time(Seconds) ->
    At = calendar:gregorian_seconds_to_datetime(calendar:datetime_to_gregorian_seconds(calendar:universal_time()) + Seconds),
    {{Y, Mo, D}, {H, Mi, S}} = At,
    {utcTime, lists:flatten(io_lib:format("~2..0b~2..0b~2..0b~2..0b~2..0b~2..0bZ", [Y rem 100, Mo, D, H, Mi, S]))}.

%% The certificate and its chain.
-spec pem(certificate()) -> binary().
pem(#{der := Der, chain := Chain}) ->
    public_key:pem_encode([{'Certificate', C, not_encrypted} || C <- [Der | Chain -- [Der]]]).

-spec key_pem(certificate()) -> binary().
key_pem(#{key := Key}) ->
    public_key:pem_encode([public_key:pem_entry_encode('ECPrivateKey', Key)]).

-spec key_pem(certificate(), Password :: string()) -> binary().
key_pem(#{key := Key}, Password) ->
    Cipher = {"AES-256-CBC", crypto:strong_rand_bytes(16)},
    public_key:pem_encode([public_key:pem_entry_encode('ECPrivateKey', Key, {Cipher, Password})]).

%% As a careful operator does it: nobody sees half a file.
-spec write(file:filename(), iodata()) -> file:filename().
write(File, Data) ->
    ok = file:write_file(File ++ ".new", Data),
    ok = file:rename(File ++ ".new", File),
    File.
